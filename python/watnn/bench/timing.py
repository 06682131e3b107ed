"""Times: all functions in turn, round after round, so that a machine that slows down slows all of them."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

_CALLS = 8  # of which the host's time is taken together, if they are short: the queue of launches must not fill
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


class Timed(NamedTuple):
    """Seconds of one call.

    seconds: of its kernels alone on a GPU, the wall clock on a CPU
    host:    of the host until a call on an idle GPU is enqueued; what `seconds` is on a CPU
    eager:   of a call among others that the host makes one after the other: whatever is slower, host or GPU
    how:     "graph": from replays of a CUDA graph; "events": between CUDA events around an eager call, for a function that
             cannot be captured, so that the host may be in it; "clock": on a CPU
    """

    seconds: float
    host: float
    eager: float
    how: str


class Timer(Protocol):
    """Seconds that functions take on one device."""

    def preparing(self) -> contextlib.AbstractContextManager:
        """A block in which functions that keep something from before their call are made."""
        ...

    def warm_up(self, function: Callable[[], object]) -> None: ...

    def round(self, functions: Sequence[Callable[[], object]]) -> list[float]: ...

    def how(self, function: Callable[[], object]) -> str:
        """Of a function that was warmed up, as in Timed."""
        ...

    def calls(self, function: Callable[[], object], reps: int) -> tuple[float, float] | None:
        """(host, eager) as in Timed, medians; None where they are what `round` measures."""
        ...


def timer_of(device: str) -> Timer:
    return CudaTimer() if torch.device(device).type == "cuda" else CpuTimer()


def time_once(function: Callable[[], object], reps: int = 20, device: str = "cuda") -> Timed:
    """Medians of one function alone; `interleaved` is for what is to be compared."""
    timer = timer_of(device)
    timer.warm_up(function)
    seconds = statistics.median(timer.round([function])[0] for _ in range(reps))
    host, eager = timer.calls(function, reps) or (seconds, seconds)
    return Timed(seconds, host, eager, timer.how(function))


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

    def preparing(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

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

    def how(self, function: Callable[[], object]) -> str:
        return "clock"

    def calls(self, function: Callable[[], object], reps: int) -> None:
        return None


class _Captured(NamedTuple):
    """A graph of so many copies of a function, each after a flush of L2; None where it cannot be captured."""

    graph: torch.cuda.CUDAGraph | None
    copies: int


class CudaTimer:
    """The time of a function's kernels, on a cold L2 and without the host.

    A graph holds k times the function, each after a kernel that reads twice as much as L2 holds; another graph holds that
    kernel alone, k times. The difference of their times, divided by k, is the function's: neither the launch of a graph nor
    what an event adds is in it. Reading, not writing, empties the cache: lines that were written would have to go to memory
    while the function runs.

    A function that cannot be captured, because it waits for the GPU for example, is timed between two events.

    All of it is on one stream, and so must be what functions keep from before their call (`preparing`): autograd runs a
    backward on the stream of its forward, and another stream than the one that is captured has no place in a capture.
    """

    _WARM_UPS = 3  # the first may compile and tune
    _MOST_COPIES, _ENOUGH = 10, 2e-3  # copies of a function in its graph; seconds after which there need not be more

    def __init__(self):
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._stream = torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._lines = torch.zeros(max(2 * cache, 64 << 20) // 4, device="cuda")
            self._sum = torch.zeros((), device="cuda")
        self._pool = torch.cuda.graph_pool_handle()  # one for all graphs, which never run at the same time
        self._captured: dict[Callable[[], object], _Captured] = {}
        self._flushes: dict[int, torch.cuda.CUDAGraph] = {}

    def preparing(self) -> contextlib.AbstractContextManager:
        return torch.cuda.stream(self._stream)

    def warm_up(self, function: Callable[[], object]) -> None:
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            for _ in range(self._WARM_UPS):
                function()
            torch.cuda.synchronize()
            start = time.perf_counter()
            function()
            torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        copies = max(1, min(self._MOST_COPIES, math.ceil(self._ENOUGH / max(seconds, 1e-9))))
        graph = None
        if not self._waits(function):
            try:
                if copies not in self._flushes:
                    self._flushes[copies] = self._capture(None, copies)
                graph = self._capture(function, copies)
            except Exception:  # whatever a function that is not made for it raises in a capture
                self._recover()
        self._captured[function] = _Captured(graph, copies)

    def _waits(self, function: Callable[[], object]) -> bool:
        """Whether an operation of torch in it waits for the GPU. Asked before, since a capture that fails does harm."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(self._stream):
                function()
        except RuntimeError:
            return True
        finally:
            torch.cuda.set_sync_debug_mode(before)
            torch.cuda.synchronize()
        return False

    def _capture(self, function: Callable[[], object] | None, copies: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # the outer block gives the stream back where the end of a capture raises, which torch's own does not
        with torch.cuda.stream(self._stream), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            for _ in range(copies):
                self._flush()
                if function is not None:
                    function()
        return graph

    def _recover(self) -> None:
        """After a capture that failed, so that it spoils nothing but its own function.

        Up to torch 2.11 at least, the end of an invalid capture raises before it has closed the memory pool, into which no
        other graph can be captured then, and the default generator, from which every later draw raises. The pool is closed
        here if it is open, and a capture that succeeds, into another pool, closes the generator.
        """
        torch.cuda.synchronize()
        device = torch.cuda.current_device()
        with contextlib.suppress(RuntimeError, AttributeError):  # closed already; a torch without these
            torch._C._cuda_endAllocateToPool(device, self._pool)
            torch._C._cuda_releasePool(
                device, self._pool
            )  # as the graph itself does after a capture that it has closed
        self._pool = torch.cuda.graph_pool_handle()
        self._capture(None, 1)

    def _flush(self) -> None:
        torch.sum(self._lines, 0, out=self._sum)

    def round(self, functions: Sequence[Callable[[], object]]) -> list[float]:
        with torch.cuda.stream(self._stream):
            marks = [self._enqueue(function) for function in functions]
            torch.cuda.synchronize()
        return [max(_between(*whole) - (_between(*rest) if rest else 0.0), 1e-9) / n for whole, rest, n in marks]

    def _enqueue(self, function: Callable[[], object]) -> tuple[tuple, tuple | None, int]:
        """(events around the graph, events around the flushes alone, copies). A flush before each keeps the GPU busy while
        the host enqueues."""
        graph, copies = self._captured[function]
        if graph is None:
            return self._marked(function), None, 1
        return self._marked(graph.replay), self._marked(self._flushes[copies].replay), copies

    def _marked(self, function: Callable[[], object]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._flush()
        begin.record()
        function()
        end.record()
        return begin, end

    def how(self, function: Callable[[], object]) -> str:
        return "events" if self._captured[function].graph is None else "graph"

    def calls(self, function: Callable[[], object], reps: int) -> tuple[float, float]:
        hosts, eagers = [], []
        calls = min(_CALLS, self._captured[function].copies)
        with torch.cuda.stream(self._stream):
            for _ in range(reps):
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(calls):
                    function()
                enqueued = time.perf_counter()
                torch.cuda.synchronize()
                hosts.append((enqueued - start) / calls)
                eagers.append((time.perf_counter() - start) / calls)
        return statistics.median(hosts), statistics.median(eagers)


def _between(begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
    return begin.elapsed_time(end) / 1e3
