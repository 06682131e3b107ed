"""Gradients that add up many terms err by at most twice what torch's own do on the same GPU, against fp64."""

import pytest
import torch
import torch.nn.functional as F

from tests.gpu.gpu_backends import DENSE, DEPTHWISE, LINEAR, fused
from wat_kernels import TapTable, shadow_conv2d, shadow_linear


def off_centre(*shape):
    """Terms of one sign mostly: their sums grow, and so does what is lost in adding one more."""
    return torch.randn(shape, device="cuda") + 1


def error(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


def check(ours, torchs, exact):
    for name, found, other, right in zip(("dweight", "dbias", "dgain"), ours, torchs, exact, strict=True):
        assert error(found, right) <= max(2 * error(other, right), 3e-7), name


def gradients(y, leaves, dy):
    return torch.autograd.grad(y, leaves, dy)


@pytest.mark.parametrize("shape", [(64, 64, 32, 32), (4, 16, 256, 256), (10, 16, 1000, 1000)])
@pytest.mark.parametrize(
    ("backend", "depthwise"),
    [
        *((backend, False) for backend in fused("shadow_conv", DENSE)),
        *((backend, True) for backend in fused("shadow_conv", DEPTHWISE)),
    ],
)
def test_convolution(backend, depthwise, shape):
    channels = shape[1]
    settings = {"padding": 1, "groups": channels if depthwise else 1}
    x, dy = (off_centre(*shape).to(memory_format=torch.channels_last) for _ in range(2))
    weight = torch.randn(channels, channels // settings["groups"], 3, 3, device="cuda", requires_grad=True)
    bias, gain = (torch.full((channels,), v, device="cuda", requires_grad=True) for v in (0.0, 1.0))
    table = TapTable.identity((3, 3))
    y = shadow_conv2d(x, weight, bias, gain=gain, table=table, key=1, backend=backend, **settings)
    ours = gradients(y, (weight, bias, gain), dy)
    torchs = gradients(F.conv2d(x, weight, bias, **settings), (weight, bias), dy)
    double = weight.detach().double().requires_grad_()
    (exact,) = gradients(F.conv2d(x.double(), double, **settings), (double,), dy.double())
    plain = weight.detach()
    dgains = [(dweight * plain.to(dweight.dtype)).sum((1, 2, 3)) for dweight in (torchs[0], exact)]
    check(ours, (*torchs, dgains[0]), (exact, dy.double().sum((0, 2, 3)), dgains[1]))


@pytest.mark.parametrize("backend", fused("shadow_linear", LINEAR._replace(rows=2**20)))
def test_linear(backend):
    x, dy = off_centre(2**20, 64), off_centre(2**20, 64)
    weight = torch.randn(64, 64, device="cuda", requires_grad=True)
    bias, gain = (torch.full((64,), v, device="cuda", requires_grad=True) for v in (0.0, 1.0))
    y = shadow_linear(x, weight, bias, gain=gain, key=1, backend=backend)
    ours = gradients(y, (weight, bias, gain), dy)
    torchs = gradients(F.linear(x, weight, bias), (weight, bias), dy)
    exact = dy.double().T @ x.double()
    dgains = [(dweight * weight.detach().to(dweight.dtype)).sum(1) for dweight in (torchs[0], exact)]
    check(ours, (*torchs, dgains[0]), (exact, dy.double().sum(0), dgains[1]))
