"""The definition of right: shadow convolution in plain PyTorch.

    SW[s] = (M[row(key, s)] . PW) * eps(key, s)
    y     = gain * conv(x[chunk s], SW[s]) + bias

Runs on any device and floating dtype, is differentiable as often as torch's own operations are, and materialises SW.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wat_kernels import torch_func
from wat_kernels.dispatch import Call
from wat_kernels.draw import dense_maps, draw_noise, draw_rows_from
from wat_kernels.ops.conv2d.geometry import Convolution, laid_out, memory_format
from wat_kernels.signature import Draw
from wat_kernels.torch_library import implement_shadow_op


def supports(call: Call) -> tuple[bool, str]:
    return call.dtype.is_floating_point, f"{call.dtype} is not a floating-point dtype"


def shadow_weights(weight: Tensor, draw: Draw) -> Tensor:
    """weight (O, I, kh, kw) -> SW of every shadow, (S, O, I, kh, kw).

    Half-precision weights are mixed in fp32 and rounded once.
    """
    count = weight.shape[2] * weight.shape[3]
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
    """x (N, C, H, W), weight (O, C / groups, kh, kw), bias (O,), gain (), (1,) or (O,) -> (N, O, H_out, W_out)."""
    form = memory_format(x, weight)
    x, weight = _with_gradient_in(form, x), _with_gradient_in(form, weight)
    top, bottom, left, right = layout.padding
    if (top, left) == (bottom, right):
        symmetric = (top, left)
    else:
        x, symmetric = F.pad(x, (left, right, top, bottom)), (0, 0)
    weights = shadow_weights(weight, draw)
    chunks = x.chunk(draw.shadows) if draw.shadows > 1 else [x]
    parts = [
        F.conv2d(chunk, shadow, None, layout.stride, symmetric, layout.dilation, layout.groups)
        for chunk, shadow in zip(chunks, weights.unbind(), strict=True)
    ]
    y = torch.cat(parts) if draw.shadows > 1 else parts[0]
    if gain is not None:
        y = y * gain.reshape(-1, 1, 1).to(y.dtype)
    if bias is not None:
        y = y + bias.reshape(-1, 1, 1)
    return laid_out(y, form)


def _with_gradient_in(form: torch.memory_format, tensor: Tensor) -> Tensor:
    """The same tensor, whose gradient is laid out in this format as torch's own is; the operations above make others."""
    if torch_func.active() or not (torch.is_grad_enabled() and tensor.requires_grad):
        return tensor
    tensor = torch.ops.aten.alias(tensor)  # a hook of the caller's tensor would stay with it
    tensor.register_hook(lambda gradient: None if gradient is None else laid_out(gradient, form))
    return tensor


implement_shadow_op("shadow_conv2d", "reference", forward, dispatch_key="CompositeImplicitAutograd")
