"""The definition of right: shadow convolution in plain PyTorch.

    SW[s] = (M[row(key, s)] . PW) * eps(key, s)
    y     = gain * conv(x[chunk s], SW[s]) + bias

Runs on any device and floating dtype, is differentiable as often as torch's own operations are, and materialises SW.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wat_kernels import torch_func
from wat_kernels.dispatch import Call
from wat_kernels.draw import dense_maps, draw_noise, draw_rows_from
from wat_kernels.ops.conv.geometry import Convolution, laid_out, memory_format
from wat_kernels.signature import Draw
from wat_kernels.torch_library import implement_shadow_op


def supports(call: Call) -> tuple[bool, str]:
    return call.dtype.is_floating_point, f"{call.dtype} is not a floating-point dtype"


def shadow_weights(weight: Tensor, draw: Draw) -> Tensor:
    """weight (A, B, *kernel) -> SW of every shadow, (S, A, B, *kernel). A is O or, where the convolution is transposed, C.

    Half-precision weights are mixed in fp32 and rounded once.
    """
    count = math.prod(weight.shape[2:])
    compute = torch.promote_types(weight.dtype, torch.float32)
    maps = dense_maps(
        draw.table.taps, draw_rows_from(draw.table.thresholds, draw.key, draw.shadows), count
    )  # (S, K, K)
    shadow = torch.einsum("stp,oip->soit", maps.to(compute), weight.flatten(2).to(compute))
    if draw.noise:
        factor = draw_noise(draw.noise, draw.amount, draw.key, draw.shadows, weight.numel())
        shadow = shadow * factor.view(draw.shadows, weight.shape[0], count, weight.shape[1]).mT
    # in one order, not the einsum's: torch's slow_conv2d refuses strides that only size-1 dimensions make channels_last
    return shadow.to(weight.dtype).unflatten(3, weight.shape[2:]).contiguous()


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, draw: Draw, layout: Convolution
) -> Tensor:
    """x (N, C, ...), weight (O, C / groups, ...), or (C, O / groups, ...) where transposed, bias (O,), gain (), (1,) or (O,)
    -> (N, O, ...)."""
    form = memory_format(x, weight)
    x, weight = _with_gradient_in(form, x), _with_gradient_in(form, weight)
    before, behind = layout.padding[::2], layout.padding[1::2]
    output_padding = [0] * len(before)
    if layout.transposed:
        output_padding = [a - b for a, b in zip(before, behind, strict=True)]
    elif before != behind:
        x, before = F.pad(x, layout.padding_of_torch()), (0,) * len(before)
    weights = shadow_weights(weight, draw)
    chunks = x.chunk(draw.shadows) if draw.shadows > 1 else [x]
    settings = (layout.stride, before, layout.dilation, layout.transposed, output_padding, layout.groups)
    parts = [
        torch.convolution(chunk, shadow, None, *settings)
        for chunk, shadow in zip(chunks, weights.unbind(), strict=True)
    ]
    y = torch.cat(parts) if draw.shadows > 1 else parts[0]
    along_channels = (-1, *[1] * len(before))
    if gain is not None:
        y = y * gain.reshape(along_channels).to(y.dtype)
    if bias is not None:
        y = y + bias.reshape(along_channels)
    return laid_out(y, form)


def _with_gradient_in(form: torch.memory_format, tensor: Tensor) -> Tensor:
    """The same tensor, whose gradient is laid out in this format as torch's own is; the operations above make others."""
    if torch_func.active() or not (torch.is_grad_enabled() and tensor.requires_grad):
        return tensor
    tensor = torch.ops.aten.alias(tensor)  # a hook of the caller's tensor would stay with it
    tensor.register_hook(lambda gradient: None if gradient is None else laid_out(gradient, form))
    return tensor


implement_shadow_op("shadow_conv", "reference", forward, dispatch_key="CompositeImplicitAutograd")
