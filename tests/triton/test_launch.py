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

X, TYPICAL = torch.zeros(1), torch.ones(1)


@triton.jit
def _kernel(x, drawn, scale, cut, size, BM: tl.constexpr):
    pass


class Recorder:
    """Stands where a kernel stands, and notes its launches: (programs, arguments, options)."""

    arg_names = _kernel.arg_names
    __name__ = cache_key = "kernel"

    def __init__(self, compiled=None):
        self.launches, self.compiled = [], compiled

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
def measured(monkeypatch, tmp_path):
    """What was launched to be measured. The last one is the fastest."""
    found = []

    def bench(call):
        found.append(call())
        return 1.0 / len(found)

    monkeypatch.setattr(triton_launch, "_bench", bench)
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    return found


@pytest.fixture
def tuned(monkeypatch, measured):
    tuned = Tuned(_kernel, configs_of(("BM",), [(128, 8, 3), (64, 4, 2)]), ["size"], lambda a: a["BM"] <= a["size"],
                  typical=lambda a: {"drawn": TYPICAL})  # fmt: skip
    tuned.kernel = Recorder(compiled=Compiled())
    monkeypatch.setattr(triton_launch, "_capturing", lambda: False)
    monkeypatch.setattr(triton_launch.triton.runtime.driver, "_active", Driver())
    return tuned


def plan(tuned, size=200):
    return tuned.plan((X, X), (size,), lambda meta: -(-size // meta["BM"]))


def ready(tuned):
    """A plan after whatever was measured."""
    found = plan(tuned)
    tuned.kernel.launches.clear()
    return found


def test_a_plan_measures_with_something_typical_and_has_the_fastest_configuration(tuned):
    found = plan(tuned)
    assert [arguments for _, arguments, _ in tuned.kernel.launches] == [
        (X, TYPICAL, 0.0, 0, 200, tile) for tile in (128, 64)
    ]
    assert found.config.kwargs == {"BM": 64}
    assert triton_launch.chosen()[-1] == ("kernel", (200,), tuned.configs[1])


def test_the_first_launch_passes_through_triton_and_later_ones_hand_over_addresses(tuned):
    launch, x = ready(tuned), torch.ones(4)
    for scale in (0.25, 0.5, 0.75):
        launch((x, None), (scale, 7))
    assert tuned.kernel.launches == [
        ((4,), (x, None, 0.25, 7, 200, 64), {"num_warps": 4, "num_stages": 2, "num_ctas": 1})
    ]
    for scale, found in zip((0.5, 0.75), tuned.kernel.compiled.launches, strict=True):
        assert found == (4, 1, 1, 77, "function", "metadata", None, None, None, x.data_ptr(), None, scale, 7, 200, 64)


def test_an_address_that_is_no_multiple_of_16_is_triton_s_to_compile_for(tuned):
    launch, x = ready(tuned), torch.ones(8)
    launch((x[1:], x), (0.5, 7))
    launch((x, x), (0.5, 7))
    assert (len(tuned.kernel.launches), len(tuned.kernel.compiled.launches)) == (2, 0)  # neither could be reused
    launch((x, x), (0.5, 7))
    launch((x[1:], x), (0.5, 7))
    assert (len(tuned.kernel.launches), len(tuned.kernel.compiled.launches)) == (3, 1)


def test_who_watches_launches_sees_each(tuned, monkeypatch):
    launch = ready(tuned)
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

    launch = ready(tuned)
    launch((X, X), (0.5, 7))
    launch._index, launch._device = 1, torch.device("cuda:1")
    monkeypatch.setattr(Driver, "get_current_device", staticmethod(lambda: current[0]))
    monkeypatch.setattr(triton_launch, "_on", on)
    launch((X, X), (0.5, 7))
    assert entered == [torch.device("cuda:1")] and len(tuned.kernel.compiled.launches) == 1


@pytest.mark.parametrize(("size", "tile"), [(200, 128), (100, 64), (10, 64)])
def test_nothing_is_measured_during_a_capture(tuned, measured, monkeypatch, size, tile):
    """The first configuration that suits runs, the last where none does; the plan is not kept, so that a later one measures."""
    monkeypatch.setattr(triton_launch, "_capturing", lambda: True)
    kept = triton_launch.plans()
    found = triton_launch.keep(kept, size, plan(tuned, size))
    assert found.config.kwargs["BM"] == tile and not measured and not kept
    monkeypatch.setattr(triton_launch, "_capturing", lambda: False)
    found = triton_launch.keep(kept, size, plan(tuned, size))
    assert len(measured) == (2 if size == 200 else 0) and kept == {size: found}


def test_plans_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(triton_launch, "_MOST_PLANS", 3)
    kept = triton_launch.plans()
    for problem in range(5):
        triton_launch.keep(kept, problem, "plan")
    assert list(kept) == [3, 4]


def test_within_choosing_nothing_is_measured(tuned, measured):
    kept = triton_launch.plans()
    triton_launch.keep(kept, "problem", "plan")
    asked = []

    def pick(kernel, suited):
        asked.append((kernel, [config.kwargs["BM"] for config in suited]))
        return suited[0]

    with triton_launch.choosing(pick):
        assert not kept  # made again
        assert plan(tuned).config.kwargs["BM"] == 128
    assert asked == [("kernel", [128, 64])] and not measured
    assert plan(tuned).config.kwargs["BM"] == 64


def test_results_on_disk_are_of_one_model_of_gpu(tuned, measured, monkeypatch):
    """H100 and H200 are the same to the compiler, and not as fast."""
    for name, times in (("NVIDIA H100", 2), ("NVIDIA H100", 2), ("NVIDIA H200", 4)):
        monkeypatch.setattr(triton_launch, "_gpu_name", lambda device, name=name: name)
        assert plan(tuned).config.kwargs["BM"] == 64
        assert len(measured) == times


def test_what_is_on_disk_and_cannot_be_read_is_measured_again(tuned, measured, tmp_path):
    plan(tuned)
    (kept,) = tmp_path.rglob("*fastest.json")
    for text in ("{", '{"place": 9}', '{"times": []}'):
        kept.write_text(text)
        assert plan(tuned).config.kwargs["BM"] == 64
    assert len(measured) == 8


def test_designs_compete_and_at_most_six_configurations_are_measured(tuned, measured):
    """Those of a design with a model of cost in its order; what does not compile loses."""
    other = Tuned(_kernel, configs_of(("BM",), [(tile, 4, 2) for tile in (256, 8, 32, 16, 4)]), ["size"], lambda a: True,
                  lambda a: {}, cost=lambda a: a["BM"])  # fmt: skip
    other.kernel = Recorder(compiled=Compiled())
    made = [triton_launch.Design(one, (X, X), (200,), lambda meta: 1) for one in (other, tuned)]
    design, found = triton_launch.fastest(made)
    assert design.tuned is tuned and found.config.kwargs["BM"] == 64
    assert [arguments[-1] for _, arguments, _ in other.kernel.launches] == [4, 8, 16, 32]
    assert [arguments[-1] for _, arguments, _ in tuned.kernel.launches] == [128, 64]


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
