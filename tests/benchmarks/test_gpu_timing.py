"""The timer of a GPU against a device of which it is known how long everything takes."""

import contextlib

import pytest
from watnn.bench import timing

FLUSH, LAUNCH = 40e-6, 7e-6  # seconds of the flush, and of starting a graph


class Device:
    """Two clocks. The host enqueues; the device begins when the host has, and when it is done with what came before."""

    def __init__(self):
        self.host = self.device = 0.0
        self.recording = None  # what a capture has collected
        self.capturable = True

    def kernel(self, seconds, host=3e-6):
        """A launch of a kernel."""
        if self.recording is not None:
            self.recording.append(seconds)
            return
        self.host += host
        self.device = max(self.device, self.host) + seconds

    def synchronize(self):
        if self.recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.host = max(self.host, self.device)


@pytest.fixture
def device(monkeypatch):
    one = Device()

    class Event:
        def __init__(self, enable_timing):
            self.time = None

        def record(self):
            self.time = max(one.device, one.host)

        def elapsed_time(self, other):
            return 1e3 * (other.time - self.time)

    class Graph:
        kernels = ()

        def replay(self):
            one.host += 5e-6
            one.device = max(one.device, one.host) + LAUNCH + sum(self.kernels)

    @contextlib.contextmanager
    def graph(captured, pool, stream):
        one.recording = []
        try:
            yield
            captured.kernels = tuple(one.recording)
        finally:
            one.recording = None

    class Timer(timing.CudaTimer):
        def __init__(self):
            self._stream, self._pool, self._captured, self._flushes = None, None, {}, {}

        def _flush(self):
            one.kernel(FLUSH)

    cuda = timing.torch.cuda
    monkeypatch.setattr(cuda, "Event", Event)
    monkeypatch.setattr(cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(cuda, "graph", graph)
    monkeypatch.setattr(cuda, "synchronize", one.synchronize)
    monkeypatch.setattr(cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(timing, "CudaTimer", Timer)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: one.host)
    return one


def test_kernels_are_timed_without_host_launch_and_flush(device):
    def function():  # three kernels in 11 us, of which the host needs 90 us
        for seconds in (5e-6, 4e-6, 2e-6):
            device.kernel(seconds, host=30e-6)

    timed = timing.time_once(function, 5)
    assert timed.how == "graph"
    assert timed.seconds == pytest.approx(11e-6)
    assert timed.host == pytest.approx(90e-6)
    assert timed.eager == pytest.approx(90e-6, rel=0.05)  # the host is what is slow


def test_where_the_gpu_is_slower_the_host_does_not_count(device):
    timed = timing.time_once(lambda: device.kernel(500e-6), 5)
    assert timed.seconds == pytest.approx(500e-6)
    assert timed.host == pytest.approx(3e-6)
    assert timed.eager == pytest.approx(500e-6, rel=0.01)


def test_what_cannot_be_captured_is_timed_between_events(device):
    def function():
        device.kernel(50e-6)
        device.synchronize()

    timed = timing.time_once(function, 3)
    assert timed.how == "events"
    assert timed.seconds == pytest.approx(50e-6, rel=0.2)


def test_long_functions_are_captured_once_and_all_share_the_rounds(device):
    timer = timing.CudaTimer()
    functions = {"long": lambda: device.kernel(4e-3), "short": lambda: device.kernel(1e-5)}
    found = timing.interleaved(functions, 3, timer)
    assert [timer._captured[function].copies for function in functions.values()] == [1, 10]
    assert found["long"] == pytest.approx([4e-3] * 3) and found["short"] == pytest.approx([1e-5] * 3)


def test_on_a_cpu_there_is_one_clock():
    timed = timing.time_once(lambda: sum(range(1000)), 3, "cpu")
    assert timed.how == "clock" and timed.seconds == timed.host == timed.eager > 0
