"""`shadow_linear`: the reference against F.linear with a materialised SW, the library against the reference."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from tests.conftest import DEVICE, examples
from tests.ops import oracle
from tests.ops.cases import TOLERANCES, LinearCase, linear_cases, torch_op
from wat_kernels import MatrixGrid, Noise, shadow_linear

GRID = MatrixGrid([[0, 0, 2 << 16, 3 << 16], [1, 0, 0, 1 << 16], [1, 1, 9 << 16, 0]], [0.4, 0.3, 0.3])


def run(case: LinearCase, backend: str):
    return shadow_linear(case.x, case.weight, case.bias, key=case.key, gain=case.gain, grid=case.grid, noise=case.noise,
                         shadows=case.shadows, backend=backend)  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", "library"])
@given(case=linear_cases())
@settings(max_examples=examples(80), deadline=None)
def test_equals_a_product_with_the_materialised_weight(backend, case):
    for leaf in case.leaves:
        leaf.requires_grad_()
    y = run(case, backend)
    matrices = oracle.shadow_matrices(case.weight, case.key, case.grid, case.noise, case.shadows)
    expected = oracle.linear(case.x, matrices, case.bias, case.gain)
    torch.testing.assert_close(y, expected, **TOLERANCES[torch.float64])
    dy = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view_as(y)
    grads = torch.autograd.grad(y, case.leaves, dy)
    for grad, right in zip(grads, torch.autograd.grad(expected, case.leaves, dy, materialize_grads=True), strict=True):
        torch.testing.assert_close(grad, right, **TOLERANCES[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["reference", "library"])
@given(case=linear_cases())
@settings(max_examples=15, deadline=None)
def test_low_precision_stays_near_the_exact_value(backend, dtype, case):
    matrices = oracle.shadow_matrices(case.weight, case.key, case.grid, case.noise, case.shadows)
    exact = oracle.linear(case.x, matrices, case.bias, case.gain)
    for name in ("x", "weight", "bias", "gain"):
        tensor = getattr(case, name)
        setattr(case, name, None if tensor is None else tensor.to(dtype))
    y = run(case, backend)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact, atol=40 * torch.finfo(dtype).eps, rtol=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("noise", [None, Noise("dropconnect", 0.3), Noise("multiplicative", 0.2)], ids=str)
@pytest.mark.parametrize("grid", [None, GRID], ids=["plain", "grid"])
@pytest.mark.parametrize("backend", ["reference", "library"])
def test_gradcheck_and_gradgradcheck(backend, grid, noise):
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 2, 5), (3, 5), (3,), (3,))]

    def function(x, weight, bias, gain):
        return shadow_linear(x, weight, bias, key=17, gain=gain, grid=grid, noise=noise, shadows=2, backend=backend)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("grid", [None, GRID], ids=["plain", "grid"])
@pytest.mark.parametrize("op", ["shadow_linear", "shadow_linear_bwd"])
def test_opcheck(op, grid):
    tensors = (None, None) if grid is None else grid.on(torch.get_default_device())
    arguments = (torch.tensor(3), *tensors, 2, 1, 0.2)
    x, weight, bias, gain = torch.randn(4, 5), torch.randn(6, 5), torch.randn(6), torch.randn(6)
    if op == "shadow_linear":
        torch.library.opcheck(torch.ops.wat_kernels.shadow_linear.library, (x, weight, bias, gain, *arguments))
        return
    for mask in ([True] * 4, [False, True, False, False], [True, False, True, False]):
        torch.library.opcheck(
            torch.ops.wat_kernels.shadow_linear_bwd.library, (torch.randn(4, 6), x, weight, gain, *arguments, mask)
        )


@pytest.mark.parametrize("backend", ["reference", "library"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_s_own_samples(backend, dtype):
    seen = 0
    op = torch_op("nn.functional.linear")
    for sample in op.sample_inputs(DEVICE, dtype, requires_grad=False):
        weight = sample.args[0]
        if weight.ndim != 2 or sample.input.ndim == 0:
            continue  # F.linear with a vector for a weight is no linear layer
        bias = sample.args[1] if len(sample.args) > 1 else sample.kwargs.get("bias")
        y = shadow_linear(sample.input, weight, bias, key=1, backend=backend)
        torch.testing.assert_close(y, F.linear(sample.input, weight, bias))
        seen += 1
    assert seen >= 6


def test_leading_shapes_and_chunks():
    weight = torch.randn(3, 5)
    x = torch.randn(4, 2, 6, 5)
    y = shadow_linear(x, weight, key=9, noise=Noise("multiplicative", 0.5), shadows=2)
    matrices = oracle.shadow_matrices(weight, 9, noise=Noise("multiplicative", 0.5), shadows=2)
    torch.testing.assert_close(y, torch.cat([F.linear(x[:2], matrices[0]), F.linear(x[2:], matrices[1])]))
    vector = shadow_linear(x[0, 0, 0], weight, key=9)
    torch.testing.assert_close(vector, F.linear(x[0, 0, 0], weight))
    assert shadow_linear(x[:0], weight, key=9).shape == (0, 2, 6, 3)


def test_a_shift_by_everything_leaves_the_bias():
    grid = MatrixGrid([[0, 0, 0, 0]], [1.0])
    far = MatrixGrid([[0, 0, 1000 << 16, 0]], [1.0])
    x, weight, bias = torch.randn(2, 5), torch.randn(3, 5), torch.randn(3)
    torch.testing.assert_close(shadow_linear(x, weight, bias, key=1, grid=grid), F.linear(x, weight, bias))
    for backend in ("reference", "library"):
        torch.testing.assert_close(shadow_linear(x, weight, bias, key=1, grid=far, backend=backend), bias.expand(2, 3))
