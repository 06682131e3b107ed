"""When configurations are measured: once a problem, and never inside a CUDA-graph capture. No GPU is needed."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'wat-kernels[triton]'")

import triton
import triton.language as tl

from wat_kernels import TapTable, shadow_conv2d, shadow_linear
from wat_kernels.ops.conv2d import triton as conv2d
from wat_kernels.ops.linear import triton as linear
from wat_kernels.triton_launch import Tuned, configs_of, noise_numbers

X = torch.zeros(1)


@triton.jit
def _kernel(x, size, drawn, scale, BM: tl.constexpr):
    pass


class Recorder:
    """Stands where a kernel or a tuner stands, and notes its launches."""

    def __init__(self, best=None):
        self.launches, self.best_config = [], best

    def __getitem__(self, grid):
        def launch(*arguments, **chosen):
            self.launches.append((arguments, chosen))

        return launch


@pytest.fixture
def tuned(monkeypatch):
    tuned = Tuned(_kernel, configs_of(("BM",), [(128, 8, 3), (64, 4, 2)]), ["size"], lambda a: a["BM"] <= a["size"],
                  typical=lambda a: {"drawn": "typical"}, zeroed=["x"])  # fmt: skip
    tuned.kernel, tuned._tuner = Recorder(), Recorder(tuned.configs[1])
    tuned.kernel.arg_names = _kernel.arg_names
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return tuned


def test_measured_once_a_problem(tuned):
    for _ in range(3):
        tuned.launch(lambda meta: 1, (X, 200, "drawn", 0.5))
    assert len(tuned._tuner.launches) == 1
    assert [chosen["BM"] for _, chosen in tuned.kernel.launches] == [64, 64, 64]
    tuned.launch(lambda meta: 1, (X, 300, "drawn", 0.5))
    assert len(tuned._tuner.launches) == 2


def test_measured_with_something_typical_and_launched_with_what_is_drawn(tuned):
    x = torch.ones(1)
    tuned.launch(lambda meta: 1, (x, 200, "drawn", 0.5))
    assert tuned._tuner.launches == [((x, 200, "typical", 0.5), {})]
    assert tuned.kernel.launches[0][0] == (x, 200, "drawn", 0.5)
    assert float(x) == 0.0  # cleared of what measuring left there


def test_another_amount_of_noise_is_the_same_problem(tuned):
    for scale in (0.1, 0.2, 0.3):
        tuned.launch(lambda meta: 1, (X, 200, "drawn", scale))
    assert len(tuned._tuner.launches) == len(tuned._chosen) == 1


@pytest.mark.parametrize(("size", "tile"), [(200, 128), (100, 64), (10, 64)])
def test_nothing_is_measured_during_a_capture(tuned, monkeypatch, size, tile):
    """The first configuration that suits runs, the last where none does; measuring is left to a later launch."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    tuned.launch(lambda meta: 1, (X, size, "drawn", 0.5))
    assert not tuned._tuner.launches
    assert tuned.kernel.launches[0][1]["BM"] == tile
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    tuned.launch(lambda meta: 1, (X, size, "drawn", 0.5))
    assert len(tuned._tuner.launches) == 1


def test_a_problem_does_not_know_its_tensors(tuned):
    arguments = (torch.ones(3), 5, None, 0.5)
    problem = tuned.problem_of(arguments)
    assert problem == tuned.problem_of((torch.zeros(9), *arguments[1:])) == (torch.float32, 5, None)
    assert problem != tuned.problem_of((torch.ones(3).half(), *arguments[1:]))


def test_noise_numbers():
    assert noise_numbers(0, 0.0) == (0.0, 0)
    assert noise_numbers(1, 0.25) == (0.25, 0)
    assert noise_numbers(2, 0.25) == (1 / 0.75, 16384)


def test_refused_on_the_cpu_with_the_reason():
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    with pytest.raises(RuntimeError, match="'triton' cannot run shadow_conv2d: x is on cpu; it runs on cuda"):
        shadow_conv2d(x, weight, table=TapTable.identity((3, 3)), key=1, backend="triton")
    with pytest.raises(RuntimeError, match="'triton' cannot run shadow_linear: x is on cpu; it runs on cuda"):
        shadow_linear(x, torch.randn(2, 5), key=1, backend="triton")


@pytest.mark.parametrize(("switch", "precision"), [("ieee", "ieee"), ("none", "ieee"), ("tf32", "tf32")])
def test_torch_s_switches_of_tf32_are_read_at_each_call(fp32_precision, switch, precision):
    fp32_precision(switch)
    for backend in (conv2d, linear):
        assert backend._precision(torch.ones(1)) == precision
        assert backend._precision(torch.ones(1).half()) == "ieee"  # of no effect there
