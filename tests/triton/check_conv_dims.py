"""Sequences, and transposed convolutions, through the Triton kernels: against the reference in fp64."""

import pytest
import torch

from tests.ops.cases import TOLERANCES
from tests.triton.device import DEVICE
from wat_kernels import Noise, TapTable, shadow_conv

# x, weight, the other arguments
PROBLEMS = [
    ((2, 6, 11), (4, 3, 3), {"padding": 1, "stride": 2, "groups": 2}),
    ((2, 4, 7), (4, 3, 3), {"transposed": True, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
    ((2, 5, 4, 3), (5, 6, 3, 2), {"transposed": True, "stride": (2, 1), "dilation": (1, 2), "padding": (1, 0)}),
    ((2, 4, 5, 4), (4, 3, 2, 2), {"transposed": True, "stride": 3, "output_padding": (1, 2), "groups": 2}),
]


def results(backend, dtype, tensors, **arguments):
    leaves = [None if t is None else t.to(DEVICE, dtype).requires_grad_() for t in tensors]
    y = shadow_conv(*leaves[:3], gain=leaves[3], backend=backend, **arguments)
    dy = torch.cos(torch.arange(y.numel(), device=DEVICE)).bfloat16().view_as(y).to(dtype)
    return y.detach(), *torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy)


def check(problem, gain_kind, noise, dtype=torch.float32, form=None):
    x_shape, weight_shape, arguments = problem
    outputs = weight_shape[1] * arguments.get("groups", 1) if arguments.get("transposed") else weight_shape[0]
    taps = torch.Size(weight_shape[2:]).numel()
    maps = torch.stack([torch.eye(taps).flip(0), torch.randn(taps, taps) * (torch.rand(taps, taps) < 0.4)])
    given = {**arguments, "table": TapTable(maps, [0.5, 0.5]), "key": 3, "noise": noise, "shadows": 2}
    gain = {"none": None, "one": torch.randn(1), "each": torch.randn(outputs)}[gain_kind]
    tensors = [torch.randn(x_shape), torch.randn(weight_shape), torch.randn(outputs), gain]
    tensors = [None if t is None else t.to(dtype) for t in tensors]
    if form is not None:
        tensors[0] = tensors[0].to(memory_format=form)
    found = results("triton", dtype, tensors, **given)
    right = results("reference", torch.float64, tensors, **given)
    for one, other in zip(found, right, strict=True):
        assert one.dtype == dtype and one.shape == other.shape
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one.double() / scale, other / scale, **TOLERANCES[dtype])


@pytest.mark.parametrize("gain", ["none", "one", "each"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_gain(problem, gain):
    check(problem, gain, Noise("dropconnect", 0.3) if gain == "each" else None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_in_channels_last(dtype):
    check(PROBLEMS[3], "each", Noise("multiplicative", 0.2), dtype, torch.channels_last)


def test_three_dimensions_are_refused():
    x, weight = torch.randn(1, 2, 4, 4, 4, device=DEVICE), torch.randn(2, 2, 3, 3, 3, device=DEVICE)
    with pytest.raises(
        RuntimeError, match="'triton' cannot run shadow_conv: it takes convolutions of 1 and 2 dimensions"
    ):
        shadow_conv(x, weight, table=TapTable.identity((3, 3, 3)), key=1, backend="triton")
