"""The definition of right: shadow linear in plain PyTorch.

    SW[s] = grid(key, s)(PW) * eps(key, s)
    y     = gain * x[chunk s] SW[s]^T + bias

`grid` moves or flips the whole (out, in) matrix. Runs on any device and floating dtype, is differentiable as often as
torch's own operations are, and materialises SW.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wat_kernels.dispatch import Call
from wat_kernels.draw import draw_noise
from wat_kernels.matrix_grid import draw_matrix_grid
from wat_kernels.ops.linear.schema import Linear
from wat_kernels.signature import Draw
from wat_kernels.torch_library import implement_shadow_op


def supports(call: Call) -> tuple[bool, str]:
    return call.dtype.is_floating_point, f"{call.dtype} is not a floating-point dtype"


def source_index(size: int, flip: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Where each line of SW comes from in PW along one axis of `size`.

    flip, shift: (S,) int64. Returns index (S, size) int64, clamped to the axis, and inside (S, size) bool.
    """
    line = torch.arange(size, device=shift.device)
    index = torch.where(flip.bool().unsqueeze(1), size - 1 - line, line) - shift.unsqueeze(1)
    return index.clamp(0, max(size - 1, 0)), (index >= 0) & (index < size)


def shadow_weights(weight: Tensor, draw: Draw) -> Tensor:
    """weight (out, in) -> SW of every shadow, (S, out, in)."""
    shadow = weight.expand(draw.shadows, *weight.shape)
    if draw.table is not None:
        thresholds, rows = draw.table
        flip_out, flip_in, shift_out, shift_in = draw_matrix_grid(thresholds, rows, draw.key, draw.shadows)
        lines, lines_inside = source_index(weight.shape[0], flip_out, shift_out)
        columns, columns_inside = source_index(weight.shape[1], flip_in, shift_in)
        moved = weight[lines.unsqueeze(2), columns.unsqueeze(1)]
        shadow = torch.where(lines_inside.unsqueeze(2) & columns_inside.unsqueeze(1), moved, 0)
    if draw.noise:
        factor = draw_noise(draw.noise, draw.amount, draw.key, draw.shadows, weight.numel()).view_as(shadow)
        shadow = (shadow.to(torch.promote_types(weight.dtype, torch.float32)) * factor).to(weight.dtype)
    return shadow


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, draw: Draw, layout: Linear) -> Tensor:
    """x (rows, in), weight (out, in), bias (out,), gain (), (1,) or (out,) -> (rows, out)."""
    weights = shadow_weights(weight, draw)
    chunks = x.chunk(draw.shadows) if draw.shadows > 1 else [x]
    parts = [F.linear(chunk, shadow) for chunk, shadow in zip(chunks, weights.unbind(), strict=True)]
    y = torch.cat(parts) if draw.shadows > 1 else parts[0]
    if gain is not None:
        y = y * gain.to(y.dtype)
    return y if bias is None else y + bias


implement_shadow_op("shadow_linear", "reference", forward, dispatch_key="CompositeImplicitAutograd")
