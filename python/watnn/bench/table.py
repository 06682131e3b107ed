"""The tables that `watnn bench` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from watnn.bench.bars import Standing
from watnn.bench.rows import BASELINES, Row

_NONE = Text("-", style="dim")


def build_tables(rows: Sequence[Row]) -> RenderableType:
    """One table a suite, and below it why something is missing."""
    parts: list[RenderableType] = []
    for suite in dict.fromkeys(row.suite for row in rows):
        chosen = [row for row in rows if row.suite == suite]
        memory = [row for row in chosen if row.mode == "memory"]
        timed = [row for row in chosen if row.mode != "memory"]
        backends = ", ".join(dict.fromkeys(row.backend for row in chosen if row.role == "wat" and row.backend))
        title = f"\n{suite} ({backends})" if backends else f"\n{suite}"
        if timed:
            parts += [Text(title, style="bold"), _time_table(timed)]
        if shares := {(row.case, row.variant): row for row in timed if row.shadow_share is not None}:
            heading = Text(f"\n{suite}: FLOPs of the convolutions in DOM", style="bold")
            parts += [heading, _shares_table(list(shares.values()))]
        if memory:
            parts += [Text(title, style="bold"), _memory_table(memory)]
        reasons = dict.fromkeys(row.note for row in chosen if row.note)
        parts += [Text(f"not measured: {reason}", style="yellow") for reason in reasons]
    return Group(*parts)


def _time_table(rows: Sequence[Row]) -> Table:
    """Our rows: milliseconds, half the distance of the quartiles in per cent, our time divided by each baseline's."""
    shown = [name for name in BASELINES if any(getattr(row, f"vs_{name}") is not None for row in rows)]
    table = _table("", "ms", "±%", *(f"/ {name}" for name in shown), "limit")

    def cells(row: Row) -> list[str | Text]:
        if row.ms is None:
            return [_NONE] * (3 + len(shown))
        spread = f"{50 * (row.ms_upper - row.ms_lower) / row.ms:.0f}"
        ratios = [_ratio(getattr(row, f"vs_{name}")) for name in shown]
        return [_ms(row.ms), spread, *ratios, _NONE if row.of_limit is None else f"{row.of_limit:.0%}"]

    ours = [row for row in rows if row.role == "wat"]
    _fill(table, ours, lambda row: f"{row.mode} {_what(row, ours)}", cells)
    return table


def _memory_table(rows: Sequence[Row]) -> Table:
    """Every contender: bytes kept for backward and at the peak, and how many of them above the plain layer's."""
    table = _table("", "saved", "- plain", "peak", "- plain")
    _fill(table, rows, lambda row: " ".join(_words(row.name, _what(row, rows))), lambda row: [
        _NONE if number is None else _bytes(number)
        for number in (row.saved_bytes, row.saved_above_plain, row.peak_bytes, row.peak_above_plain)
    ])  # fmt: skip
    return table


def _fill(
    table: Table, rows: Sequence[Row], label: Callable[[Row], str], cells: Callable[[Row], Sequence[str | Text]]
) -> None:
    """The rows of a case under its name."""
    last = None
    for row in rows:
        if row.case != last:
            table.add_row(Text(row.case, style="bold"))
        table.add_row(f"  {label(row)}", *cells(row))
        last = row.case


def _shares_table(rows: Sequence[Row]) -> Table:
    """What a DOM model saves, in shares of the plain network's: on average over the draws, and with the cheapest ones."""
    table = _table("", "in shadow layers", "saved", "saved at most")
    _fill(table, rows, lambda row: row.variant, lambda row: [
        f"{abs(share):.1%}" for share in (row.shadow_share, 1 - row.expected_share, 1 - row.least_share)
    ])  # fmt: skip
    return table


def bars_table(standings: Sequence[Standing]) -> Table:
    table = _table("bar", "measured", "has to be", "")
    for standing in standings:
        verdict = Text("met", style="green") if standing.met else Text("MISSED", style="bold red")
        bound = f"{'>=' if standing.at_least else '<='} {standing.bar:g}"
        table.add_row(standing.name, f"{standing.value:.3g}", bound, verdict)
    return table


def _table(first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1), show_edge=False)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _what(row: Row, rows: Sequence[Row]) -> str:
    """What is drawn; and the backend, where rows have several."""
    several = len({row.backend for row in rows if row.backend}) > 1
    return " ".join(_words(row.variant, f"({row.backend})" if row.backend and several else ""))


def _words(*words: str) -> Iterator[str]:
    return filter(None, words)


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _bytes(count: int) -> str:
    return f"{count} B" if abs(count) < 1000 else f"{count / 1e6:,.2f} MB"


def _ratio(value: float | None) -> Text:
    if value is None:
        return _NONE
    return Text(f"{value:.2f}", style="green" if value <= 1 else "red")
