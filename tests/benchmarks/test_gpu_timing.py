"""The timer of a GPU against a device of which it is known how long everything takes."""

import contextlib

import pytest
from watnn.bench import timing

FLUSH, LAUNCH = 40e-6, 7e-6  # seconds of the flush, and of starting a graph


class Device:
    """Two clocks. The host enqueues; the device begins when the host has, and when it is done with what came before.

    A capture that was made invalid leaves its pool open, the generator in its capture, and its stream the current one, as
    in torch 2.11.
    """

    def __init__(self):
        self.host = self.device = 0.0
        self.recording = None  # what a capture has collected
        self.invalid = False  # whether that capture can still become a graph
        self.captures = 0  # that were begun
        self.pools = 0  # that were handed out
        self.open_pools = set()
        self.generator_captures = False
        self.waits_are = "default"  # torch's debug mode for what waits
        self.stream = "the user's"

    def kernel(self, seconds, host=3e-6):
        """A launch of a kernel."""
        if self.recording is not None:
            self.recording.append(seconds)
            return
        self.host += host
        self.device = max(self.device, self.host) + seconds

    def synchronize(self):
        """Of CUDA itself, of which torch does not know in a function."""
        if self.recording is not None:
            self.invalid = True
            raise RuntimeError("operation not permitted when stream is capturing")
        self.host = max(self.host, self.device)

    def item(self):
        """An operation of torch that waits."""
        if self.waits_are == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        self.synchronize()

    def draw(self):
        if self.generator_captures != (self.recording is not None):
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly")
        self.kernel(1e-6)


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
        if pool in one.open_pools:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        before, one.stream = one.stream, stream
        one.open_pools.add(pool)
        one.recording, one.invalid, one.generator_captures = [], False, True
        one.captures += 1
        try:
            yield
        finally:
            kernels, one.recording = tuple(one.recording), None
            if one.invalid:
                raise RuntimeError("operation failed due to a previous error during capture")
            captured.kernels = kernels
            one.open_pools.remove(pool)
            one.generator_captures = False
            one.stream = before

    @contextlib.contextmanager
    def current(stream):
        before, one.stream = one.stream, stream
        try:
            yield
        finally:
            one.stream = before

    def new_pool():
        one.pools += 1
        return one.pools

    class Timer(timing.CudaTimer):
        def __init__(self):
            self._stream, self._pool, self._captured, self._flushes = "the timer's", new_pool(), {}, {}

        def _flush(self):
            one.kernel(FLUSH)

    cuda = timing.torch.cuda
    monkeypatch.setattr(cuda, "Event", Event)
    monkeypatch.setattr(cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(cuda, "graph", graph)
    monkeypatch.setattr(cuda, "synchronize", one.synchronize)
    monkeypatch.setattr(cuda, "stream", current)
    monkeypatch.setattr(cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cuda, "graph_pool_handle", new_pool)
    monkeypatch.setattr(cuda, "get_sync_debug_mode", lambda: one.waits_are)
    monkeypatch.setattr(cuda, "set_sync_debug_mode", lambda mode: setattr(one, "waits_are", mode))
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


def test_what_waits_is_timed_between_events_and_no_capture_of_it_is_begun(device):
    def function():
        device.kernel(50e-6)
        device.item()

    timed = timing.time_once(function, 3)
    assert timed.how == "events"
    assert timed.seconds == pytest.approx(50e-6, rel=0.2)
    assert (device.captures, device.waits_are) == (0, "default")


def _waits_unseen(device):
    device.kernel(50e-6)
    device.synchronize()


def _raises_in_a_capture(device):
    device.kernel(50e-6)
    if device.recording is not None:
        raise ValueError("not made for a capture")


@pytest.mark.parametrize("fails", [_waits_unseen, _raises_in_a_capture])
@pytest.mark.parametrize("closes", [True, False])  # whether this torch lets its pools be closed
def test_a_capture_that_fails_spoils_no_other_function(device, monkeypatch, fails, closes):
    released = []

    def end(index, pool):
        if pool not in device.open_pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        device.open_pools.remove(pool)

    if closes:
        monkeypatch.setattr(timing.torch._C, "_cuda_endAllocateToPool", end, raising=False)
        monkeypatch.setattr(
            timing.torch._C, "_cuda_releasePool", lambda index, pool: released.append(pool), raising=False
        )
    else:
        monkeypatch.delattr(timing.torch._C, "_cuda_endAllocateToPool", raising=False)
    timer = timing.CudaTimer()

    def drawing():
        device.draw()
        device.kernel(9e-6)

    functions = {"before": lambda: device.kernel(7e-6), "fails": lambda: fails(device), "after": drawing}
    found = timing.interleaved(functions, 3, timer)
    assert [timer.how(function) for function in functions.values()] == ["graph", "events", "graph"]
    assert found["before"] == pytest.approx([7e-6] * 3) and found["after"] == pytest.approx([10e-6] * 3)
    assert found["fails"] == pytest.approx([50e-6] * 3, rel=0.2)
    device.draw()  # without a capture, as a layer does in the next case
    assert device.stream == "the user's"
    # a pool is given back where the failed graph does not do it: only where its capture was made invalid
    assert released == ([1] if closes and fails is _waits_unseen else [])


def test_the_queue_of_launches_does_not_fill_while_the_host_is_timed(device):
    calls = []

    def step():  # a network's training step
        calls.append(1)
        device.kernel(5e-3, host=1e-3)

    timer = timing.CudaTimer()
    timer.warm_up(step)
    calls.clear()
    assert timer.calls(step, 4) == (pytest.approx(1e-3), pytest.approx(6e-3))
    assert len(calls) == 4


def test_long_functions_are_captured_once_and_all_share_the_rounds(device):
    timer = timing.CudaTimer()
    functions = {"long": lambda: device.kernel(4e-3), "short": lambda: device.kernel(1e-5)}
    found = timing.interleaved(functions, 3, timer)
    assert [timer._captured[function].copies for function in functions.values()] == [1, 10]
    assert found["long"] == pytest.approx([4e-3] * 3) and found["short"] == pytest.approx([1e-5] * 3)


def test_on_a_cpu_there_is_one_clock():
    timed = timing.time_once(lambda: sum(range(1000)), 3, "cpu")
    assert timed.how == "clock" and timed.seconds == timed.host == timed.eager > 0
