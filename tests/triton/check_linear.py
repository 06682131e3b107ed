"""Every argument of the linear kernels, on odd sizes, against the reference with the same key."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from tests.ops.cases import TOLERANCES, linear_cases
from tests.triton.device import DEVICE
from wat_kernels import MatrixGrid, Noise, shadow_linear

NOISES = [None, Noise("dropconnect", 0.3), Noise("multiplicative", 0.2)]
GRID = MatrixGrid(
    [[0, 0, 30 << 16, 40 << 16], [1, 0, 0, 20 << 16], [0, 1, 9 << 16, 0], [1, 1, 7 << 16, 50 << 16]], [0.25] * 4
)
# the interpreter is slow: no example is shrunk
SLOW = {"deadline": None, "phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}


def results(backend, x, weight, bias, gain, **arguments):
    """y and the gradients of all leaves."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, bias, gain)]
    y = shadow_linear(*leaves[:3], gain=leaves[3], backend=backend, **arguments)
    # numbers that every dtype has, so that all results are of the same
    dy = torch.cos(torch.arange(y.numel(), device=y.device)).bfloat16().view_as(y).to(y.dtype)
    present = [leaf for leaf in leaves if leaf is not None]
    return y.detach(), *torch.autograd.grad(y, present, dy, materialize_grads=True)


def check(x, weight, bias, gain, dtype=torch.float32, **arguments):
    """The Triton backend in `dtype` against the reference in fp64."""
    given_values = [None if t is None else t.to(DEVICE, dtype) for t in (x, weight, bias, gain)]
    exact = [None if t is None else t.double() for t in given_values]
    found = results("triton", *given_values, **arguments)
    for one, other in zip(found, results("reference", *exact, **arguments), strict=True):
        assert one.dtype == dtype and one.shape == other.shape
        scale = max(1.0, float(other.abs().max()) if other.numel() else 1.0)  # long sums: of the size of the result
        torch.testing.assert_close(one.double() / scale, other / scale, **TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@given(case=linear_cases())
@settings(max_examples=4, **SLOW)
def test_random_arguments(dtype, case):
    check(case.x, case.weight, case.bias, case.gain, dtype, key=case.key, grid=case.grid, noise=case.noise,
          shadows=case.shadows)  # fmt: skip


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("grid", [None, GRID], ids=["plain", "grid"])
@pytest.mark.parametrize("sizes", [(72, 80), (75, 67)], ids=str)
def test_several_tiles_of_everything(sizes, grid, noise):
    """More rows, features and chunks than one tile holds; 80 input features take the packed noise, 67 do not."""
    x, weight = torch.randn(2, 70, sizes[1]), torch.randn(sizes) / 8
    check(x, weight, torch.randn(sizes[0]), torch.rand(sizes[0]), key=11, grid=grid, noise=noise, shadows=2)


@pytest.mark.parametrize("key", range(4))
def test_many_shadows_of_one_small_matrix(key):
    """Each shadow moves other outputs into a line of PW, each with a gain of its own."""
    grid = MatrixGrid([[0, 0, 3 << 16, 2 << 16], [1, 1, 2 << 16, 0]], [0.5, 0.5])
    x, weight = torch.randn(5, 9, 7), torch.randn(6, 7)
    check(x, weight, torch.randn(6), torch.randn(6), key=key, grid=grid, noise=NOISES[2], shadows=5)


def test_a_reduction_cut_into_parts_is_the_same_at_each_run():
    x, weight, gain = torch.randn(700, 20), torch.randn(9, 20), torch.rand(9)
    check(x, weight, None, gain, key=1, noise=NOISES[1])
    first = results("triton", *(t.to(DEVICE) for t in (x, weight)), None, gain.to(DEVICE), key=1)
    again = results("triton", *(t.to(DEVICE) for t in (x, weight)), None, gain.to(DEVICE), key=1)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_more_blocks_of_rows_than_one_chain():
    x, dy = torch.rand(12_000, 4), torch.rand(12_000, 5)
    found = []
    for name, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        weight = torch.zeros(5, 4, device=DEVICE, dtype=dtype, requires_grad=True)
        y = shadow_linear(x.to(DEVICE, dtype), weight, key=1, backend=name)
        found.append(torch.autograd.grad(y, weight, dy.to(y))[0].double())
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 5e-7


def test_a_shift_by_everything_leaves_the_bias():
    far = MatrixGrid([[0, 0, 1000 << 16, 0]], [1.0])
    x, weight, bias = torch.randn(2, 5), torch.randn(3, 5), torch.randn(3)
    check(x, weight, bias, torch.tensor(2.0), key=1, grid=far)


def test_layouts_and_empty_batches():
    x, weight = torch.randn(6, 30), torch.randn(12, 20)
    for rows in (x[:, ::2], x[:, 3:13].expand(6, 10), torch.randn(10, 4).mT, x[:0, :10]):
        check(rows, weight[:, : rows.shape[1]], None, None, key=2)
        check(rows, torch.randn(rows.shape[1], 5).mT, None, None, key=2)


@pytest.mark.parametrize("grid", [None, GRID], ids=["plain", "grid"])
@pytest.mark.parametrize("op", ["shadow_linear", "shadow_linear_bwd"])
def test_opcheck(op, grid):
    tensors = (None, None) if grid is None else grid.on(torch.device(DEVICE))
    arguments = (torch.tensor(3, device=DEVICE), *tensors, 2, 1, 0.2)
    x, weight, bias, gain, dy = (torch.randn(shape, device=DEVICE) for shape in ((4, 5), (6, 5), 6, 6, (4, 6)))
    if op == "shadow_linear":
        torch.library.opcheck(torch.ops.wat_kernels.shadow_linear.triton, (x, weight, bias, gain, *arguments))
        return
    for mask in ([True] * 4, [False, True, False, False], [True, False, True, False], [False, False, False, True]):
        torch.library.opcheck(torch.ops.wat_kernels.shadow_linear_bwd.triton, (dy, x, weight, gain, *arguments, mask))
