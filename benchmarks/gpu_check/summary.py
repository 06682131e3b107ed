"""What a run found, in at most 80 lines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.gpu_check.report import Finding, Record, read
from benchmarks.gpu_check.stages import STAGES
from benchmarks.gpu_check.standings import standings

MOST_LINES = 80
_WIDTH = 160
_FAILURES = 22
_MANY = 30  # numbers of a finding that is for programs alone


def lines(folder: Path, name: str, seconds: float) -> list[str]:
    """Stages, what failed, and then a part for each stage that measures; the last parts give way where there is too much."""
    records = {stage.name: read(folder, stage.name) for stage in STAGES}
    records = {name: record for name, record in records.items() if record.planned or record.findings}
    found = ["", f"== {name.replace('_', ' ')}, {seconds:.0f} s"]
    for stage, record in records.items():
        found.append(
            f"{stage:10} {counts(record)}" + (f"; not reached: {_names(record.missing)}" if record.missing else "")
        )
    failed = [(stage, finding) for stage, record in records.items() for _, finding in record.failed]
    if failed:
        found += ["", f"FAILED ({len(failed)})"]
        found += [f"{stage}: {finding.what}: {finding.text}" for stage, finding in failed[:_FAILURES]]
        if len(failed) > _FAILURES:
            found.append(f"and {len(failed) - _FAILURES} more in {folder}/*.jsonl")
    for stage, part in _PARTS.items():
        if stage in records:
            made = part([finding for _, finding in records[stage].findings])
            if made:
                found += ["", f"-- {stage}", *made]
    found = [line[:_WIDTH] for line in found]
    return found if len(found) <= MOST_LINES else [*found[: MOST_LINES - 1], f"... more in {folder}"]


def counts(record: Record) -> str:
    passed = sum(finding.passed is True for _, finding in record.findings)
    parts = [f"{passed} passed" if passed else "", f"{len(record.failed)} FAILED" if record.failed else ""]
    steps = f"{len(record.ended)} of {len(record.planned)} steps"
    compiled = sum(int(one.numbers["misses"]) for _, one in record.findings if "misses" in one.numbers)
    parts.append(f"{compiled} kernels compiled on the way" if compiled else "")
    return ", ".join(filter(None, [steps, *parts]))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they need to be."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _facts(findings: Sequence[Finding]) -> list[str]:
    times = [f for f in findings if "host_us" in f.numbers]
    told = [f.text for f in findings if f.passed is None and f not in times and not f.what.startswith("library")]
    if times:
        told.append("host, us: " + ", ".join(f"{f.what} {f.numbers['host_us']:.0f}" for f in times))
    return [part for line in told for part in textwrap.wrap(line, _WIDTH)]


def _smoke(findings: Sequence[Finding]) -> list[str]:
    """Kinds of layers and backends down, dtypes across: how many of how many are equal to the reference."""
    cells: dict[tuple[str, str, str], list[bool]] = {}
    for finding in findings:
        if "layer" in finding.numbers:
            place = tuple(str(finding.numbers[name]) for name in ("layer", "backend", "dtype"))
            cells.setdefault(place, []).append(bool(finding.passed))
    dtypes = list(dict.fromkeys(dtype for _, _, dtype in cells))
    rows = [("", "", *dtypes)]
    for layer, backend in dict.fromkeys((layer, backend) for layer, backend, _ in cells):
        each = [cells.get((layer, backend, dtype), []) for dtype in dtypes]
        rows.append((layer, backend, *(f"{sum(one)}/{len(one)}" if one else "-" for one in each)))
    return table(rows) if cells else []


def _speed(findings: Sequence[Finding]) -> list[str]:
    """Of ours: kernel time and its ratios, then those of the eager calls."""
    rows = [("layer, backend", "mode", "kernels us", "TFLOP/s", "of limit", "/ plain", "/ official", "/ library",
             "eager us", "/ plain")]  # fmt: skip
    for finding in findings:
        one = finding.numbers
        if one.get("role") == "wat":
            rows.append((
                f"{one['layer']} {one['variant']}, {one['backend']}", str(one["mode"]), _number(one, "kernel_us"),
                _number(one, "tflops"), _number(one, "of_limit"), _number(one, "vs_plain"), _number(one, "vs_official"),
                _number(one, "vs_library"), _number(one, "eager_us"), _number(one, "eager_vs_plain"),
            ))  # fmt: skip
    first = [f.text for f in findings if f.what == "L2 to multiprocessors"]
    return [*first, *(table(rows) if len(rows) > 1 else [])]


def _number(numbers: Mapping[str, float | int | str], name: str) -> str:
    value = numbers.get(name)
    return "-" if value is None or not math.isfinite(float(value)) else f"{float(value):.3g}"


def _benchmark(findings: Sequence[Finding]) -> list[str]:
    rows = [("suite", "draws", "mode", "backend", "against", "cases", "mean", "best", "worst", "bar", "aim")]
    for one in standings(findings):
        bar = one.bar
        rows.append((bar.suite, bar.variant, bar.mode, one.backend, bar.baseline, str(len(one.ratios)), f"{one.mean:.2f}",
                     f"{min(one.ratios):.2f}", f"{max(one.ratios):.2f}", f"{bar.bar:g}", f"{bar.aim:g}"))  # fmt: skip
    return table(rows) if len(rows) > 1 else []


def _told(findings: Sequence[Finding]) -> list[str]:
    return [f"{one.what}: {one.text}" for one in findings if len(one.numbers) < _MANY and "misses" not in one.numbers]


def _best(findings: Sequence[Finding]) -> list[str]:
    """Of `tuning`, whose findings are many, those that end a step."""
    return [f"{f.what}: {f.text}" for f in findings if "ratio" in f.numbers]


_PARTS: dict[str, Callable[[Sequence[Finding]], list[str]]] = {
    "facts": _facts,
    "smoke": _smoke,
    "speed": _speed,
    "sanitizer": _told,
    "counters": _told,
    "tuning": _best,
    "benchmark": _benchmark,
}
