"""The bars: how fast the layers have to be. A table for who changes a kernel; no test asserts a time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from watnn.bench.rows import Row
from watnn.bench.suites.conv import SMALL


class Bar(NamedTuple):
    """On the ratio of forward and backward to a baseline: its geometric mean over the shapes, and its worst shape."""

    suite: str
    variants: tuple[str, ...]
    baseline: str
    mean: float
    worst: float | None = None


class Standing(NamedTuple):
    """One line: a measured number against its bar. Lower is better, unless `at_least`."""

    name: str
    value: float
    bar: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar


_NOISE = ("dropconnect", "multiplicative")
BARS = [
    Bar("conv", ("translate",), "plain", 0.80),
    Bar("conv", ("identity",), "plain", 1.00, 1.15),
    Bar("conv", ("resized_crop",), "plain", 1.08),
    Bar("conv", ("translate",), "official", 0.45),
    Bar("depthwise", ("translate",), "plain", 0.60),
    Bar("linear", _NOISE, "plain", 1.00),
    Bar("linear", _NOISE, "official", 0.40),
]
MOST_OVERHEAD = 15.0  # microseconds of the smallest forward above nn.Conv2d's
LEAST_SPEEDUP = 1.8  # of two threads over one
MOST_SAVED = 8  # bytes for backward above the plain layer's: the key


def standings(rows: Sequence[Row]) -> list[Standing]:
    """Each bar for which `rows` hold a number."""
    found = []
    ours = [row for row in rows if row.role == "wat" and not row.note]
    for bar in BARS:
        ratios = [
            ratio
            for row in ours
            if (row.suite, row.mode) == (bar.suite, "full") and row.variant in bar.variants
            if (ratio := getattr(row, f"vs_{bar.baseline}")) is not None
        ]
        if ratios:
            name = f"{bar.suite}, {' and '.join(bar.variants)} / {bar.baseline}"
            found.append(Standing(f"{name}, mean", statistics.geometric_mean(ratios), bar.mean))
            if bar.worst is not None:
                found.append(Standing(f"{name}, worst", max(ratios), bar.worst))
    found += _overhead(rows)
    found += _speedup(ours)
    saved = [row.saved_above_plain for row in ours if row.saved_above_plain is not None]
    if saved:
        found.append(Standing("bytes kept for backward above plain, most", max(saved), MOST_SAVED))
    return found


def _overhead(rows: Sequence[Row]) -> list[Standing]:
    small = [row for row in rows if (row.suite, row.case, row.mode) == ("conv", str(SMALL), "forward")]
    ours = [row.ms for row in small if row.role == "wat" and row.variant == "translate" and row.ms is not None]
    plain = [row.ms for row in small if row.role == "plain" and row.ms is not None]
    if not (ours and plain):
        return []
    name = f"{SMALL}, forward above nn.Conv2d, µs"
    return [Standing(name, 1e3 * (ours[-1] - plain[-1]), MOST_OVERHEAD)]


def _speedup(ours: Sequence[Row]) -> list[Standing]:
    times = {row.at: row.ms for row in ours if row.curve == "threads" and row.ms is not None}
    if not {1, 2} <= times.keys():
        return []
    return [Standing("conv, one thread / two threads", times[1] / times[2], LEAST_SPEEDUP, at_least=True)]
