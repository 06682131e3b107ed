"""The tables that `watnn bench` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from watnn.bench.bars import Standing
from watnn.bench.rows import BASELINES, Row

_NONE = Text("-", style="dim")
_BASELINE_NAMES = {"official": "official", "compiled": "official,\ncompiled", "library": "library"}


def build_tables(rows: Sequence[Row]) -> RenderableType:
    """One table a suite, and below it why something is missing."""
    parts: list[RenderableType] = []
    for suite in dict.fromkeys(row.suite for row in rows):
        chosen = [row for row in rows if row.suite == suite]
        memory = [row for row in chosen if row.mode == "memory"]
        timed = [row for row in chosen if row.mode != "memory"]
        if timed:
            parts += [Text(f"\n{suite}", style="bold"), _time_table(timed)]
        if memory:
            parts += [Text(f"\n{suite}: bytes", style="bold"), _memory_table(memory)]
        reasons = dict.fromkeys(row.note for row in chosen if row.note)
        parts += [Text(f"not measured: {reason}", style="yellow") for reason in reasons]
    return Group(*parts)


def _time_table(rows: Sequence[Row]) -> Table:
    """Our rows, with a ratio to each baseline; the ms of the plain layer beside ours."""
    table = _table("case", "mode", "layer")
    shown = [name for name in BASELINES if any(getattr(row, f"vs_{name}") is not None for row in rows)]
    for heading in ("ms", "quartiles", *(f"/ {_heading(name, rows)}" for name in shown), "of the\nlimit"):
        table.add_column(heading, justify="right", no_wrap=True)
    last = None
    for row in rows:
        if row.role != "wat":
            continue
        if last not in (None, row.case):
            table.add_section()
        quartiles = _NONE if row.ms is None else f"{_ms(row.ms_lower)} {_ms(row.ms_upper)}"
        ratios = (_ratio(getattr(row, f"vs_{name}")) for name in shown)
        limit = _NONE if row.of_limit is None else f"{row.of_limit:.0%}"
        first = row.case if row.case != last else ""
        table.add_row(first, row.mode, _what(row), _NONE if row.ms is None else _ms(row.ms), quartiles, *ratios, limit)
        last = row.case
    return table


def _heading(baseline: str, rows: Sequence[Row]) -> str:
    if baseline == "plain":
        return next(row.name for row in rows if row.role == "plain")
    return _BASELINE_NAMES[baseline]


def _memory_table(rows: Sequence[Row]) -> Table:
    """Every contender: the plain layer's bytes, and what the others take above them."""
    table = _table("case", "layer")
    for heading in ("kept for\nbackward", "above\nplain", "peak", "above\nplain"):
        table.add_column(heading, justify="right", no_wrap=True)
    last = None
    for row in rows:
        if last not in (None, row.case):
            table.add_section()
        numbers = (row.saved_bytes, row.saved_above_plain, row.peak_bytes, row.peak_above_plain)
        cells = (_NONE if number is None else f"{number:,}" for number in numbers)
        table.add_row(row.case if row.case != last else "", _what(row), *cells)
        last = row.case
    return table


def bars_table(standings: Sequence[Standing]) -> Table:
    table = _table("bar")
    for heading in ("measured", "bar", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for standing in standings:
        verdict = Text("met", style="green") if standing.met else Text("MISSED", style="bold red")
        bound = f"{'>=' if standing.at_least else '<='} {standing.bar:g} {standing.unit}".rstrip()
        table.add_row(standing.name, f"{standing.value:.3g}", bound, verdict)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _what(row: Row) -> str:
    backend = f"({row.backend})" if row.backend else ""
    return " ".join(_words(row.name if row.role != "wat" else "", row.variant, backend))


def _words(*words: str) -> Iterator[str]:
    return filter(None, words)


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ratio(value: float | None) -> Text:
    if value is None:
        return _NONE
    return Text(f"{value:.2f}", style="green" if value <= 1 else "red")
