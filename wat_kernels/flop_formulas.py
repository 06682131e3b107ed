"""What `torch.utils.flop_counter.FlopCounterMode` counts for the ops: the multiply-adds of what the draw leaves.

A multiply-add counts as 2, as in torch's own formulas. Of a convolution those of the active taps are counted, of a moved
Linear weight those of the lines that stay inside; the backward pass once for dx and once for dweight or dgain. The map
itself and the noise, which touch the weight and not the images, are not counted.

What is drawn has to be read for this, so that counting waits for an accelerator at each op; the ops themselves do not.
Where it cannot be read the count is
    its mean over the draws   if the key has no data, but the table has (a fake x with real constants)
    that of the plain layer   if the table has none either (meta or fake tensors), or while a CUDA graph is captured
The backend "reference" is a composition of torch's operations and counted as these: all taps, and the map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils.flop_counter import register_flop_formula

from wat_kernels.draw import draw_rows_from
from wat_kernels.matrix_grid import draw_matrix_grid, mean_inside
from wat_kernels.ops import conv, linear  # noqa: F401  (the ops are defined before they get a formula)
from wat_kernels.signature import Draw
from wat_kernels.torch_library import SCALED, SIGNATURES


def _conv_pass(x: Tensor, y: Tensor, weight: Tensor, draw: Draw, layout: Any) -> int:
    """x: (N, C, ...), y: (N, O, ...), weight: (O, I, ...), or (C, O / groups, ...) where the layout is transposed"""
    with unset_fake_temporarily():  # the table may be real where x is not
        active = _mean_active_taps(draw, math.prod(weight.shape[2:]))
    gathered = x if layout.transposed else y  # each element of it meets every tap of every channel of a group
    return round(2 * gathered.numel() * weight.shape[1] * active)


def _linear_pass(x: Tensor, y: Tensor, weight: Tensor, draw: Draw, layout: Any) -> int:
    """x: (rows, in), y: (rows, out), weight: (out, in)"""
    with unset_fake_temporarily():
        elements = _mean_elements(draw, weight.shape)
    return round(2 * y.shape[0] * elements)


def _register(op: str, one_pass: Callable[[Tensor, Tensor, Tensor, Draw, Any], int]) -> None:
    """one_pass: of x, y or dy, the weight, the draw and the layout -> the multiply-adds of one product, times 2"""
    structured = SIGNATURES[op].structured

    def forward(x: Tensor, weight: Tensor, bias: object, gain: object, *flat: Any, out_val: Tensor) -> int:
        return one_pass(x, out_val, weight, *structured(flat))

    def backward(dy: Tensor, x: Tensor, weight: Tensor, gain: object, *flat: Any, out_val: object) -> int:
        *flat, mask = flat  # type: ignore[assignment]
        return _passes(mask) * one_pass(x, dy, weight, *structured(flat))

    for name, formula in ((op, forward), (f"{op}_bwd", backward)):
        for scaled in ("", SCALED):
            register_flop_formula(getattr(torch.ops.wat_kernels, name + scaled), get_raw=True)(formula)


def _passes(mask: Sequence[bool]) -> int:
    needs_x, needs_weight, _, needs_gain = mask
    return int(needs_x) + int(needs_weight or needs_gain)


def _mean_active_taps(draw: Draw, count: int) -> float:
    """Taps that a chunk computes, on average over the chunks. count: K"""
    thresholds, taps = draw.table.thresholds, draw.table.taps
    if not _readable(thresholds, taps):
        return count
    active = taps[:, 0].double()
    if _readable(draw.key):
        return float(active[draw_rows_from(thresholds, draw.key, draw.shadows)].mean())
    return float(active @ _probabilities(thresholds))


def _mean_elements(draw: Draw, shape: Sequence[int]) -> float:
    """Elements of the (out, in) weight that a chunk multiplies with, on average over the chunks."""
    if draw.table is None or not _readable(*draw.table):
        return math.prod(shape)
    thresholds, rows = draw.table
    if not _readable(draw.key):
        return mean_inside(rows, _probabilities(thresholds), shape)
    _, _, *shifts = draw_matrix_grid(thresholds, rows, draw.key, draw.shadows)
    lines = [(size - shift.abs()).clamp(min=0) for size, shift in zip(shape, shifts, strict=True)]
    return float((lines[0] * lines[1]).double().mean())


def _probabilities(thresholds: Tensor) -> Tensor:
    return thresholds.diff(prepend=thresholds.new_zeros(1)).double() / 2.0**32


def _readable(*tensors: Tensor) -> bool:
    if any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in tensors):
        return False
    return not (tensors[0].is_cuda and torch.cuda.is_current_stream_capturing())


_register("shadow_conv", _conv_pass)
_register("shadow_linear", _linear_pass)
