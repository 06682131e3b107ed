"""Times: all functions in turn, round after round, so that a machine that slows down slows all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

LEAST_SAMPLE = 2e-3  # seconds: what is shorter on a CPU is called several times for one sample


class Spread(NamedTuple):
    """Seconds: the median of the rounds and the quartiles around it."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, lower, upper)


class Timer(Protocol):
    """Seconds that functions take on one device."""

    def warm_up(self, function: Callable[[], object]) -> None: ...

    def round(self, functions: Sequence[Callable[[], object]]) -> list[float]: ...


def timer_of(device: str) -> Timer:
    return CudaTimer() if torch.device(device).type == "cuda" else CpuTimer()


def interleaved(functions: Mapping[str, Callable[[], object]], reps: int, timer: Timer) -> dict[str, list[float]]:
    """Seconds of each function in each of `reps` rounds; in a round each runs once, in the order given: A B C A B C."""
    for function in functions.values():
        timer.warm_up(function)
    rounds = [timer.round(list(functions.values())) for _ in range(reps)]
    return {name: [seconds[place] for seconds in rounds] for place, name in enumerate(functions)}


class CpuTimer:
    """The wall clock. A function that takes less than LEAST_SAMPLE is called as often as that needs for one sample."""

    def __init__(self):
        self._calls: dict[Callable[[], object], int] = {}

    def warm_up(self, function: Callable[[], object]) -> None:
        function()
        start = time.perf_counter()
        function()
        self._calls[function] = max(1, math.ceil(LEAST_SAMPLE / max(time.perf_counter() - start, 1e-9)))

    def round(self, functions: Sequence[Callable[[], object]]) -> list[float]:
        seconds = []
        for function in functions:
            calls = range(self._calls[function])
            start = time.perf_counter()
            for _ in calls:
                function()
            seconds.append((time.perf_counter() - start) / len(calls))
        return seconds


class CudaTimer:
    """CUDA events around each call, on a cold L2.

    Overwriting a buffer of twice the L2 empties the cache between calls. It also keeps the GPU busy while the CPU
    enqueues the call, so that what is measured is the GPU's time and not the launch.
    """

    _WARM_UPS = 3  # the first may compile and tune

    def __init__(self):
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._flush = torch.empty(max(2 * cache, 64 << 20), dtype=torch.uint8, device="cuda")

    def warm_up(self, function: Callable[[], object]) -> None:
        for _ in range(self._WARM_UPS):
            function()
        torch.cuda.synchronize()

    def round(self, functions: Sequence[Callable[[], object]]) -> list[float]:
        events = []
        for function in functions:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._flush.zero_()
            begin.record()
            function()
            end.record()
            events.append((begin, end))
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in events]
