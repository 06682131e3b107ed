"""Sequences, and transposed convolutions, through the depthwise kernels: against the reference in fp64."""

import itertools

import pytest
import torch

from tests.cuda.test_depthwise import device  # noqa: F401  (a fixture)
from wat_kernels import Noise, TapTable, shadow_conv
from wat_kernels.ops.conv import cuda
from wat_kernels.ops.conv.geometry import Convolution, memory_format, strides_in
from wat_kernels.signature import Draw

# sizes of x, kernel, layout
PROBLEMS = [
    ((19,), (5,), Convolution((2,), (2, 2), (1,), 6)),
    ((9,), (3,), Convolution((1,), (2, 2), (2,), 6)),
    ((7,), (4,), Convolution((2,), (1, 0), (1,), 6, True)),
    ((6,), (3,), Convolution((3,), (1, 1), (2,), 6, True)),
    ((5, 6), (3, 3), Convolution((2, 2), (1, 0, 1, 0), (1, 1), 6, True)),
    ((5, 6), (3, 3), Convolution((1, 1), (1, 1, 1, 1), (1, 1), 6, True)),
    ((4, 3), (2, 5), Convolution((3, 1), (0, -1, 2, 2), (1, 2), 6, True)),
]


def on(tensor, device):  # noqa: F811
    return None if tensor is None else tensor.detach().to(device)


@pytest.mark.parametrize("gain_size", [None, 1, 6])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_reference(device, problem, gain_size, dtype):  # noqa: F811
    size, kernel, layout = problem
    taps = torch.Size(kernel).numel()
    maps = torch.stack([torch.eye(taps), torch.randn(taps, taps) * (torch.rand(taps, taps) < 0.4)])
    table = TapTable(maps, [0.5, 0.5], kernel)
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((4, 6, *size), (6, 1, *kernel), (6,)))
    gain = None if gain_size is None else torch.randn(gain_size).to(dtype)
    padding = layout.padding[::2]
    more = {}
    if layout.transposed:
        more["output_padding"] = tuple(a - b for a, b in zip(padding, layout.padding[1::2], strict=True))
    for key, channels_last in itertools.product((1, 2), (False, True)):
        image = x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x
        draw = Draw(torch.tensor(key, device=device), table.on(torch.device(device)), 2, 2, 0.3)
        given = [on(t, device) for t in (image, weight, bias, gain)]
        y = cuda.forward(*given, draw, layout)
        leaves = [None if t is None else t.double().requires_grad_() for t in (x, weight, bias, gain)]
        right = shadow_conv(
            *leaves[:3], table=table, key=key, gain=leaves[3], noise=Noise("dropconnect", 0.3), stride=layout.stride,
            padding=padding, dilation=layout.dilation, groups=6, transposed=layout.transposed, shadows=2,
            backend="reference", **more,
        )  # fmt: skip
        dy = torch.cos(torch.arange(y.numel()) * 1.7).view(y.shape).to(dtype)
        grads = cuda.backward(on(dy, device), *given[:2], given[3], draw, layout, (True, True, True, gain is not None))
        present = [leaf for leaf in leaves if leaf is not None]
        form = memory_format(given[0], given[1])
        assert (y.stride(), grads[0].stride()) == (strides_in(y.shape, form), strides_in(x.shape, form))
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        for one, other in zip((y, *grads), (right, *torch.autograd.grad(right, present, dy.double())), strict=False):
            assert one.dtype == dtype
            scale = max(1.0, float(other.detach().abs().max()))
            torch.testing.assert_close(
                one.cpu().double() / scale, other.detach() / scale, rtol=tolerance, atol=tolerance
            )


def test_only_what_is_asked_for(device):  # noqa: F811
    layout = Convolution((2, 2), (1, 1, 1, 1), (1, 1), 3, True)
    draw = Draw(torch.tensor(1, device=device), TapTable.identity((3, 3)).on(torch.device(device)))
    x, weight, gain = (torch.randn(shape).to(device) for shape in ((2, 3, 5, 5), (3, 1, 3, 3), (3,)))
    dy = torch.randn_like(cuda.forward(x, weight, None, gain, draw, layout))
    every = cuda.backward(dy, x, weight, gain, draw, layout, (True,) * 4)
    for mask in itertools.product((False, True), repeat=4):
        for grad, whole, asked in zip(cuda.backward(dy, x, weight, gain, draw, layout, mask), every, mask, strict=True):
            assert torch.equal(grad, whole) if asked else grad.numel() == 0
