"""`shadow_linear.native` on products of pairs of bf16: how SW is rounded, odd numbers of everything, errors beside torch's."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.native.conftest import ISAS
from tests.native.test_linear_native import Case, check, dy_of, native
from wat_kernels import MatrixGrid, Noise, philox

pytestmark = pytest.mark.skipif(
    "avx512bf16" not in ISAS, reason="this processor has no AVX512-BF16, or there is no build"
)

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def _pairs():
    before = torch.ops.wat_kernels.native_isa("")
    torch.ops.wat_kernels.native_isa("avx512bf16")
    yield
    torch.ops.wat_kernels.native_isa(before)


@pytest.mark.parametrize("shape", [(70, 130), (33, 31), (3, 1)], ids=str)
def test_the_shadow_weight_is_rounded_once(shape):
    """Rows of ones pick out its elements: DropConnect of 1/3 makes w * 1.5, which needs one more bit."""
    outputs, inputs = shape
    weight = torch.randn(shape).to(BF16)
    noise, key = Noise("dropconnect", 0.3), 11
    kept = philox.keep_mask(torch.tensor(key), 1, math.prod(shape), noise.amount).view(shape)
    scale = 1 / (1 - torch.tensor(noise.amount, dtype=torch.float64)).float()
    shadow = torch.where(kept, weight.float() * scale, 0.0).to(BF16)
    forward = native(Case(torch.eye(inputs).to(BF16), weight, key=key, noise=noise))[0]
    assert torch.equal(forward, shadow.t())
    x = torch.zeros(outputs, inputs, dtype=BF16)
    for gain in (None, torch.tensor(2.0)):
        dx = native(Case(x, weight, key=key, noise=noise, gain=gain), torch.eye(outputs).to(BF16))[1]
        assert torch.equal(dx, shadow if gain is None else 2 * shadow)


@pytest.mark.parametrize("rows", [1, 2, 3, 15, 65, 257])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (31, 33), (257, 65), (65, 1025)], ids=str)
def test_odd_numbers_of_rows_inputs_and_outputs(rows, shape):
    outputs, inputs = shape
    grid = MatrixGrid([[1, 1, min(3, outputs) << 16, 1 << 16], [0, 1, 0, 0]], [0.5, 0.5])
    for changes in ({}, {"gain": torch.randn(outputs)}, {"gain": torch.randn(()), "grid": grid}):
        check(
            Case(
                torch.randn(rows, inputs).to(BF16),
                torch.randn(shape).to(BF16),
                noise=Noise("dropconnect", 0.3),
                **changes,
            )
        )


@pytest.mark.parametrize("shape", [(512, 300, 200), (4096, 64, 64)], ids=str)
@pytest.mark.parametrize("offset", [0, 1])
def test_errors_are_at_most_twice_those_of_torch(shape, offset):
    """offset: terms of one sign mostly, whose sums grow."""
    rows, inputs, outputs = shape
    x, weight = (torch.randn(rows, inputs) + offset).to(BF16), (torch.randn(outputs, inputs) + offset).to(BF16)
    case = Case(x, weight, bias=torch.zeros(outputs, dtype=BF16))
    dy = (torch.randn(dy_of(case).shape) + offset).to(BF16)

    def gradients(dtype):
        leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in (x, weight, case.bias)]
        y = F.linear(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(dtype))]

    names = ("y", "dx", "dweight", "dbias")
    for name, ours, torchs, exact in zip(
        names, native(case, dy), gradients(BF16), gradients(torch.float64), strict=False
    ):
        mine, other = ((found.double() - exact).norm() / exact.norm() for found in (ours, torchs))
        assert mine <= 2 * other, name
