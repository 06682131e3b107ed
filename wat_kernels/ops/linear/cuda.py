"""The CUDA C++ backend, for few rows: one launch a pass, which reads the weight once and makes its noise in registers.

The kernels are in csrc/cuda/linear*. They register themselves for the schemas below when the library is loaded; this file
allocates what they write.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wat_kernels.cuda_launch import multiprocessors, refusal, stream_of
from wat_kernels.dispatch import Call
from wat_kernels.ops.linear.schema import SIGNATURE, Linear
from wat_kernels.qualified import qualified
from wat_kernels.signature import Draw, Gradients, gain_gradient, gradients
from wat_kernels.torch_library import LIBRARY, implement_shadow_op

_MOST_ROWS = 64  # csrc/cuda/linear.h
_DRAW = "Tensor key, Tensor? grid_thresholds, Tensor? grid, int shadows, int noise, float amount"

LIBRARY.define(
    f"cuda_linear_forward(Tensor x, Tensor weight, Tensor? bias, Tensor? gain, {_DRAW}, Tensor(a!) y, int stream) -> ()"
)
LIBRARY.define(
    f"cuda_linear_backward_gain(Tensor dy, Tensor x, Tensor weight, {_DRAW}, Tensor(a!) dgain, int stream) -> ()"
)
LIBRARY.define(
    f"cuda_linear_backward_data(Tensor dy, Tensor weight, Tensor? gain, {_DRAW}, Tensor(a!) dx, Tensor(b!)? parts, "
    "int stream) -> ()"
)
LIBRARY.define(
    f"cuda_linear_backward_weight(Tensor dy, Tensor x, Tensor? gain, {_DRAW}, Tensor(a!) dweight, int stream) -> ()"
)


RUNS_ON = "cuda"


def supports(call: Call) -> tuple[bool, str]:
    reason = refusal(call)
    if not reason and call.rows > _MOST_ROWS:
        reason = f"x has {call.rows} rows; it takes at most {_MOST_ROWS}"
    return not reason, reason


def worthwhile(call: Call) -> tuple[bool, str]:
    """Once this GPU has been seen to compute right with it."""
    return qualified("shadow_linear", "cuda", call)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, draw: Draw, layout: Linear) -> Tensor:
    """x (rows, in), weight (out, in), bias (out,), gain (), (1,) or (out,) -> (rows, out)."""
    y = x.new_empty(x.shape[0], weight.shape[0])
    if y.numel():
        drawn = SIGNATURE.flat(draw, layout)
        torch.ops.wat_kernels.cuda_linear_forward(x, weight, bias, gain, *drawn, y, stream_of(x))
    return y


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, draw: Draw, layout: Linear, mask: Sequence[bool]
) -> Gradients:
    """The gradients of x, weight, bias and gain where `mask` asks for them; empty tensors elsewhere."""
    needs_x, needs_weight, needs_bias, needs_gain = mask
    drawn, stream = SIGNATURE.flat(draw, layout), stream_of(x)
    dx = dweight = dgain = None
    if needs_x:
        dx = x.new_empty(x.shape)
        if dx.numel():
            splits = splits_of(weight.shape[0], weight.shape[1], multiprocessors(x.device))
            parts = x.new_empty(splits, *x.shape, dtype=torch.float32) if splits > 1 else None
            torch.ops.wat_kernels.cuda_linear_backward_data(dy, weight, gain, *drawn, dx, parts, stream)
    if needs_weight:
        dweight = torch.empty_like(weight)
        if dweight.numel():
            torch.ops.wat_kernels.cuda_linear_backward_weight(dy, x, gain, *drawn, dweight, stream)
    if needs_gain and gain is not None:
        # <dy, x SW^T>, from a second look at the weight: it is exact for every grid and needs no scratch
        each = torch.zeros(weight.shape[0], dtype=torch.float32, device=x.device)
        if dy.numel():
            torch.ops.wat_kernels.cuda_linear_backward_gain(dy, x, weight, *drawn, each, stream)
        dgain = gain_gradient(each, gain)
    return gradients(x, dx, dweight, dy.sum(0) if needs_bias else None, dgain)


def splits_of(out_features: int, in_features: int, multiprocessors: int) -> int:
    """Into how many parts the data gradient's sum over output features is cut, so that every multiprocessor is busy.

    A block has 64 input features and at least 128 output features (16 for each of its warps). The scratch,
    (splits, rows, in) in fp32, does not grow with the output features.
    """
    blocks = -(-in_features // 64)
    return max(1, min(2 * multiprocessors // blocks, -(-out_features // 128), 8))


implement_shadow_op("shadow_linear", "cuda", forward, backward, "CUDA")
