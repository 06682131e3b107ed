"""The bars of the GPU: how fast the layers have to be there, and where they stand. No test asserts a time."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from watnn.bench.suites.linear import NOISES

from benchmarks.gpu_check.report import Finding


class Bar(NamedTuple):
    """On the geometric mean of a ratio over the cases: a bar, and what is aimed at."""

    suite: str
    variant: str
    mode: str
    baseline: str
    bar: float
    aim: float


class Standing(NamedTuple):
    """The cases of one bar on one backend."""

    bar: Bar
    backend: str
    ratios: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.geometric_mean(self.ratios)


_MODES = ("forward", "full")
BARS = [
    *(Bar("conv", "translate", mode, "plain", 0.90, 0.75) for mode in _MODES),
    *(Bar("conv", "identity", mode, "plain", 1.10, 1.0) for mode in _MODES),
    *(Bar("conv", "translate", mode, "official", 0.33, 0.2) for mode in _MODES),
    *(Bar("conv", "translate", mode, "compiled", 0.75, 0.6) for mode in _MODES),
    *(Bar("depthwise", "translate", mode, "plain", 0.5, 0.5) for mode in _MODES),
    *(Bar("linear", "dropconnect", mode, "plain", 1.15, 1.0) for mode in _MODES),
    *(Bar("linear", "multiplicative", mode, "plain", 1.5, 1.2) for mode in _MODES),
    *(Bar("linear", "multiplicative", mode, "compiled", 1.0, 0.9) for mode in _MODES),
    *(Bar("few_rows", noise, mode, "plain", 1.1, 1.0) for noise in NOISES for mode in _MODES),
]


def standings(findings: Sequence[Finding]) -> Iterator[Standing]:
    """Each bar that the benchmark's findings have a number for, for each backend."""
    ours = [finding.numbers for finding in findings if finding.numbers.get("role") == "wat"]
    for bar in BARS:
        found: dict[str, list[float]] = {}
        for one in ours:
            ratio = one.get(f"vs_{bar.baseline}")
            if (one["suite"], one["variant"], one["mode"]) == (bar.suite, bar.variant, bar.mode) and ratio is not None:
                found.setdefault(str(one["backend"]), []).append(float(ratio))
        yield from (Standing(bar, backend, tuple(ratios)) for backend, ratios in found.items())
