"""When configurations are measured: once a problem, and never inside a CUDA-graph capture. No GPU is needed."""

import contextlib

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'wat-kernels[triton]'")

import triton
import triton.language as tl

from wat_kernels import TapTable, shadow_conv2d, shadow_linear, triton_launch
from wat_kernels.ops.conv import triton as conv2d
from wat_kernels.ops.linear import triton as linear
from wat_kernels.triton_launch import Tuned, configs_of, noise_numbers

X = torch.zeros(1)


@triton.jit
def _kernel(x, drawn, scale, cut, size, BM: tl.constexpr):
    pass


class Recorder:
    """Stands where a kernel or a tuner stands, and notes its launches: (programs, arguments, options)."""

    arg_names = _kernel.arg_names
    __name__ = "kernel"

    def __init__(self, best=None, compiled=None):
        self.launches, self.best_config, self.compiled = [], best, compiled

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.launches.append((grid, arguments, options))
            return self.compiled

        return launch


class Compiled:
    """What a launch through Triton returns."""

    function, packed_metadata = "function", "metadata"

    def __init__(self):
        self.launches = []

    def run(self, *arguments):
        self.launches.append(arguments)


class Driver:
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 77)


@pytest.fixture
def tuned(monkeypatch):
    tuned = Tuned(_kernel, configs_of(("BM",), [(128, 8, 3), (64, 4, 2)]), ["size"], lambda a: a["BM"] <= a["size"],
                  typical=lambda a: {"drawn": "typical"})  # fmt: skip
    tuned.kernel, tuned._tuner = Recorder(compiled=Compiled()), Recorder(tuned.configs[1])
    monkeypatch.setattr(triton_launch, "_capturing", lambda: False)
    monkeypatch.setattr(triton_launch.triton.runtime.driver, "_active", Driver())
    return tuned


def plan(tuned, size=200):
    return tuned.plan((X, X), (size,), lambda meta: -(-size // meta["BM"]))


def test_a_plan_measures_with_something_typical_and_has_the_fastest_configuration(tuned):
    found = plan(tuned)
    ((_, arguments, _),) = tuned._tuner.launches
    assert arguments == (X, "typical", 0.0, 0, 200)
    assert found.config.kwargs == {"BM": 64}
    assert triton_launch.chosen()[-1] == ("kernel", (200,), tuned.configs[1])


def test_the_first_launch_passes_through_triton_and_later_ones_hand_over_addresses(tuned):
    launch, x = plan(tuned), torch.ones(4)
    for scale in (0.25, 0.5, 0.75):
        launch((x, None), (scale, 7))
    assert tuned.kernel.launches == [
        ((4,), (x, None, 0.25, 7, 200, 64), {"num_warps": 4, "num_stages": 2, "num_ctas": 1})
    ]
    for scale, found in zip((0.5, 0.75), tuned.kernel.compiled.launches, strict=True):
        assert found == (4, 1, 1, 77, "function", "metadata", None, None, None, x.data_ptr(), None, scale, 7, 200, 64)


def test_an_address_that_is_no_multiple_of_16_is_triton_s_to_compile_for(tuned):
    launch, x = plan(tuned), torch.ones(8)
    launch((x[1:], x), (0.5, 7))
    launch((x, x), (0.5, 7))
    assert (len(tuned.kernel.launches), len(tuned.kernel.compiled.launches)) == (2, 0)  # neither could be reused
    launch((x, x), (0.5, 7))
    launch((x[1:], x), (0.5, 7))
    assert (len(tuned.kernel.launches), len(tuned.kernel.compiled.launches)) == (3, 1)


def test_who_watches_launches_sees_each(tuned, monkeypatch):
    launch = plan(tuned)
    launch((X, X), (0.5, 7))
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", lambda metadata: None)
    launch((X, X), (0.5, 7))
    assert (len(tuned.kernel.launches), len(tuned.kernel.compiled.launches)) == (2, 0)


def test_another_device_is_made_the_current_one(tuned, monkeypatch):
    current, entered = [0], []

    @contextlib.contextmanager
    def on(device):
        entered.append(device)
        current[0] = 1
        yield
        current[0] = 0

    launch = plan(tuned)
    launch((X, X), (0.5, 7))
    launch._index, launch._device = 1, torch.device("cuda:1")
    monkeypatch.setattr(Driver, "get_current_device", staticmethod(lambda: current[0]))
    monkeypatch.setattr(triton_launch, "_on", on)
    launch((X, X), (0.5, 7))
    assert entered == [torch.device("cuda:1")] and len(tuned.kernel.compiled.launches) == 1


@pytest.mark.parametrize(("size", "tile"), [(200, 128), (100, 64), (10, 64)])
def test_nothing_is_measured_during_a_capture(tuned, monkeypatch, size, tile):
    """The first configuration that suits runs, the last where none does; the plan is not kept, so that a later one measures."""
    monkeypatch.setattr(triton_launch, "_capturing", lambda: True)
    kept = triton_launch.plans()
    found = triton_launch.keep(kept, size, plan(tuned, size))
    assert found.config.kwargs["BM"] == tile and not tuned._tuner.launches and not kept
    monkeypatch.setattr(triton_launch, "_capturing", lambda: False)
    found = triton_launch.keep(kept, size, plan(tuned, size))
    assert len(tuned._tuner.launches) == 1 and kept == {size: found}


def test_plans_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(triton_launch, "_MOST_PLANS", 3)
    kept = triton_launch.plans()
    for problem in range(5):
        triton_launch.keep(kept, problem, "plan")
    assert list(kept) == [3, 4]


def test_within_choosing_nothing_is_measured(tuned):
    kept = triton_launch.plans()
    triton_launch.keep(kept, "problem", "plan")
    asked = []

    def pick(kernel, suited):
        asked.append((kernel, [config.kwargs["BM"] for config in suited]))
        return suited[0]

    with triton_launch.choosing(pick):
        assert not kept  # made anew
        assert plan(tuned).config.kwargs["BM"] == 128
    assert asked == [("kernel", [128, 64])] and not tuned._tuner.launches
    assert plan(tuned).config.kwargs["BM"] == 64


def test_results_on_disk_are_of_one_model_of_gpu(tuned, monkeypatch, tmp_path):
    """H100 and H200 are the same to the compiler, and not as fast."""
    from triton.runtime.autotuner import Autotuner

    tuner = Tuned(_kernel, tuned.configs, ["size"], lambda a: True, lambda a: {})._tuner
    seen = []

    def on_disk(self, key, configs, bench):
        seen.append(key)
        self.cache[key] = "config"
        return True

    monkeypatch.setattr(Autotuner, "check_disk_cache", on_disk)
    for name in ("NVIDIA H100", "NVIDIA H200"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert tuner.check_disk_cache((200, "torch.float32"), tuner.configs, None)
        assert tuner.cache == {(200, "torch.float32"): "config"}
    assert seen == [(200, "torch.float32", "NVIDIA H100"), (200, "torch.float32", "NVIDIA H200")]


def test_noise_numbers():
    assert noise_numbers(0, 0.0) == (0.0, 0)
    assert noise_numbers(1, 0.25) == (0.25, 0)
    assert noise_numbers(2, 0.25) == (1 / 0.75, 16384)


def test_refused_on_the_cpu_with_the_reason():
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    with pytest.raises(RuntimeError, match="'triton' cannot run shadow_conv: x is on cpu; it runs on cuda"):
        shadow_conv2d(x, weight, table=TapTable.identity((3, 3)), key=1, backend="triton")
    with pytest.raises(RuntimeError, match="'triton' cannot run shadow_linear: x is on cpu; it runs on cuda"):
        shadow_linear(x, torch.randn(2, 5), key=1, backend="triton")


@pytest.mark.parametrize(("switch", "precision"), [("ieee", "ieee"), ("none", "ieee"), ("tf32", "tf32")])
def test_torch_s_switches_of_tf32_are_read_at_each_call(fp32_precision, switch, precision):
    fp32_precision(switch)
    for backend in (conv2d, linear):
        assert backend._precision(torch.ones(1)) == precision
        assert backend._precision(torch.ones(1).half()) == "ieee"  # of no effect there
