"""Gradients that add up many terms err by at most twice what torch's own do, against fp64."""

import pytest
import torch
import torch.nn.functional as F

from wat_kernels import TapTable, shadow_conv2d, shadow_linear
from wat_kernels.extension import NATIVE

pytestmark = pytest.mark.skipif(not NATIVE.available, reason=NATIVE.reason)

TABLE = TapTable.identity((3, 3))
# with one running sum over all pixels the dense ones are too far off
CONVOLUTIONS = {
    "many images": ((64, 32, 32, 32), 1),
    "large images": ((2, 16, 256, 256), 1),
    "depthwise": ((2, 16, 256, 256), 16),
    "long lines": ((1, 4, 8, 65536), 1),
}


def relative_error(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


def check(ours, torchs, exact):
    for name, found, other, right in zip(("dweight", "dbias", "dgain"), ours, torchs, exact, strict=True):
        # torch itself may be as good as fp32 can tell
        bound = max(2 * relative_error(other, right), 3e-7)
        assert relative_error(found, right) <= bound, name


def off_centre(*shape):
    """Terms of one sign mostly: their sums grow, and so does what is lost in adding one more."""
    return torch.randn(shape) + 1


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name):
    (n, c, height, width), groups = CONVOLUTIONS[name]
    torch.manual_seed(0)
    x, dy = (off_centre(n, c, height, width).to(memory_format=torch.channels_last) for _ in range(2))
    weight, bias, gain = torch.randn(c, c // groups, 3, 3), torch.zeros(c), torch.ones(c)
    leaves = [leaf.requires_grad_() for leaf in (weight, bias, gain)]
    settings = {"padding": 1, "groups": groups}
    y = shadow_conv2d(x, weight, bias, gain=gain, table=TABLE, key=1, backend="native", **settings)
    ours = torch.autograd.grad(y, leaves, dy)
    torchs = torch.autograd.grad(F.conv2d(x, weight, bias, **settings), (weight, bias), dy)
    double = weight.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(F.conv2d(x.double(), double, **settings), double, dy.double())

    def dgain(dweight):
        return (dweight * weight.detach().to(dweight.dtype)).sum((1, 2, 3))

    check(ours, (*torchs, dgain(torchs[0])), (exact, dy.double().sum((0, 2, 3)), dgain(exact)))


def test_linear():
    torch.manual_seed(0)
    x, dy, weight = off_centre(2**18, 24), off_centre(2**18, 24), torch.randn(24, 24)
    leaves = [leaf.requires_grad_() for leaf in (weight, torch.zeros(24), torch.ones(24))]
    y = shadow_linear(x, *leaves[:2], gain=leaves[2], key=1, backend="native")
    ours = torch.autograd.grad(y, leaves, dy)
    torchs = torch.autograd.grad(F.linear(x, *leaves[:2]), leaves[:2], dy)
    exact = dy.double().T @ x.double()

    def dgain(dweight):
        return (dweight * weight.detach().to(dweight.dtype)).sum(1)

    check(ours, (*torchs, dgain(torchs[0])), (exact, dy.double().sum(0), dgain(exact)))
