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
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils.flop_counter import register_flop_formula

from wat_kernels.draw import draw_rows_from
from wat_kernels.matrix_grid import draw_matrix_grid, mean_inside
from wat_kernels.ops import conv2d, linear  # noqa: F401  (the ops are defined before they get a formula)
from wat_kernels.torch_library import SCALED


def _conv2d(*arguments: Any, out_val: Tensor) -> int:
    _, weight, _, _, key, thresholds, taps, _, *rest = arguments
    return _conv2d_pass(out_val, weight, key, thresholds, taps, shadows=rest[4])


def _conv2d_bwd(*arguments: Any, out_val: object) -> int:
    dy, _, weight, _, key, thresholds, taps, _, *rest = arguments
    return _passes(rest[-1]) * _conv2d_pass(dy, weight, key, thresholds, taps, shadows=rest[4])


def _linear(*arguments: Any, out_val: Tensor) -> int:
    x, weight, _, _, key, thresholds, grid, shadows, *_ = arguments
    return _linear_pass(x, weight, key, thresholds, grid, shadows)


def _linear_bwd(*arguments: Any, out_val: object) -> int:
    _, x, weight, _, key, thresholds, grid, shadows, *rest = arguments
    return _passes(rest[-1]) * _linear_pass(x, weight, key, thresholds, grid, shadows)


for _op, _formula in (
    ("shadow_conv2d", _conv2d),
    ("shadow_conv2d_bwd", _conv2d_bwd),
    ("shadow_linear", _linear),
    ("shadow_linear_bwd", _linear_bwd),
):
    for _name in (_op, _op + SCALED):
        register_flop_formula(getattr(torch.ops.wat_kernels, _name), get_raw=True)(_formula)


def _conv2d_pass(y: Tensor, weight: Tensor, key: Tensor, thresholds: Tensor, taps: Tensor, shadows: int) -> int:
    """y: (N, O, H_out, W_out), weight: (O, I, kh, kw)"""
    with unset_fake_temporarily():  # the table may be real where x is not
        active = _mean_active_taps(key, thresholds, taps, math.prod(weight.shape[2:]), shadows)
    return round(2 * y.numel() * weight.shape[1] * active)


def _linear_pass(
    x: Tensor, weight: Tensor, key: Tensor, thresholds: Tensor | None, grid: Tensor | None, shadows: int
) -> int:
    """x: (rows, in), weight: (out, in)"""
    with unset_fake_temporarily():
        elements = _mean_elements(key, thresholds, grid, weight.shape, shadows)
    return round(2 * x.shape[0] * elements)


def _passes(mask: Sequence[bool]) -> int:
    needs_x, needs_weight, _, needs_gain = mask
    return int(needs_x) + int(needs_weight or needs_gain)


def _mean_active_taps(key: Tensor, thresholds: Tensor, taps: Tensor, count: int, shadows: int) -> float:
    """Taps that a chunk computes, on average over the chunks. count: K"""
    if not _readable(thresholds, taps):
        return count
    active = taps[:, 0].double()
    if _readable(key):
        return float(active[draw_rows_from(thresholds, key, shadows)].mean())
    return float(active @ _probabilities(thresholds))


def _mean_elements(
    key: Tensor, thresholds: Tensor | None, grid: Tensor | None, shape: Sequence[int], shadows: int
) -> float:
    """Elements of the (out, in) weight that a chunk multiplies with, on average over the chunks."""
    if grid is None or thresholds is None or not _readable(thresholds, grid):
        return math.prod(shape)
    if not _readable(key):
        return mean_inside(grid, _probabilities(thresholds), shape)
    _, _, *shifts = draw_matrix_grid(thresholds, grid, key, shadows)
    lines = [(size - shift.abs()).clamp(min=0) for size, shift in zip(shape, shifts, strict=True)]
    return float((lines[0] * lines[1]).double().mean())


def _probabilities(thresholds: Tensor) -> Tensor:
    return thresholds.diff(prepend=thresholds.new_zeros(1)).double() / 2.0**32


def _readable(*tensors: Tensor) -> bool:
    if any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in tensors):
        return False
    return not (tensors[0].is_cuda and torch.cuda.is_current_stream_capturing())
