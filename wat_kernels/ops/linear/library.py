"""Materialise SW, call the vendor's matrix product: the honest baseline, and a fallback.

A moved or flipped matrix is read through a view: only the part of PW that stays inside is multiplied. For that the
shift is read on the host, which waits for the device on an accelerator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wat_kernels.dispatch import Call
from wat_kernels.draw import draw_noise
from wat_kernels.matrix_grid import draw_matrix_grid
from wat_kernels.torch_library import implement


def supports(call: Call) -> tuple[bool, str]:
    return call.dtype.is_floating_point, f"{call.dtype} is not a floating-point dtype"


class _Span(NamedTuple):
    """Along one axis: SW[shadow] holds PW[plain], read backwards if `flip`; both slices have one length."""

    shadow: slice
    plain: slice
    flip: bool


def _span(size: int, flip: bool, shift: int) -> _Span:
    first, last = max(0, shift), min(size, size + shift)  # lines of the shifted matrix that hold something
    last = max(first, last)
    plain = slice(first - shift, last - shift)
    return _Span(slice(size - last, size - first) if flip else slice(first, last), plain, flip)


def _spans(
    weight: Tensor, key: Tensor, grid_thresholds: Tensor | None, grid: Tensor | None, shadows: int
) -> list[tuple[_Span, _Span]]:
    out_features, in_features = weight.shape
    if grid is None:
        return [(_span(out_features, False, 0), _span(in_features, False, 0))] * shadows
    assert grid_thresholds is not None  # they come together
    if weight.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "backend='library' reads the shift of a matrix on the host, which a CUDA graph capture forbids; "
            "accepted there is backend='reference'"
        )
    drawn = torch.stack(draw_matrix_grid(grid_thresholds, grid, key, shadows), dim=1).tolist()
    return [
        (_span(out_features, bool(flip_out), shift_out), _span(in_features, bool(flip_in), shift_in))
        for flip_out, flip_in, shift_out, shift_in in drawn
    ]


def _factors(weight: Tensor, key: Tensor, shadows: int, noise: int, amount: float) -> Sequence[Tensor | None]:
    if not noise:
        return [None] * shadows
    return draw_noise(noise, amount, key, shadows, weight.numel()).view(shadows, *weight.shape).unbind()


def _turned(matrix: Tensor, out: _Span, into: _Span) -> Tensor:
    axes = [axis for axis, span in enumerate((out, into)) if span.flip]
    return matrix.flip(axes) if axes else matrix


def _shadow(weight: Tensor, gain: Tensor | None, out: _Span, into: _Span, factor: Tensor | None) -> Tensor:
    """The part of SW that holds something of PW, scaled by the gain."""
    part = _turned(weight[out.plain, into.plain], out, into)
    if factor is not None:
        part = (part * factor[out.shadow, into.shadow]).to(weight.dtype)
    return part if gain is None else part * _gain_of(gain, out).to(weight.dtype)


def _gain_of(gain: Tensor, out: _Span) -> Tensor:
    """(1, 1) or (lines, 1): the gain of the output lines of `out.shadow`."""
    return gain.reshape(-1, 1) if gain.numel() == 1 else gain[out.shadow].unsqueeze(1)


def _fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    key: Tensor,
    grid_thresholds: Tensor | None,
    grid: Tensor | None,
    shadows: int,
    noise: int,
    amount: float,
) -> Tensor:
    spans = _spans(weight, key, grid_thresholds, grid, shadows)
    factors = _factors(weight, key, shadows, noise, amount)
    if grid is None and shadows == 1:
        return torch.nn.functional.linear(x, _shadow(weight, gain, *spans[0], factors[0]), bias)
    y = x.new_zeros(x.shape[0], weight.shape[0])
    for chunk, y_chunk, (out, into), factor in zip(x.chunk(shadows), y.chunk(shadows), spans, factors, strict=True):
        y_chunk[:, out.shadow] = chunk[:, into.shadow] @ _shadow(weight, gain, out, into, factor).mT
    return y if bias is None else y.add_(bias)


def _bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    gain: Tensor | None,
    key: Tensor,
    grid_thresholds: Tensor | None,
    grid: Tensor | None,
    shadows: int,
    noise: int,
    amount: float,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    needs_x, needs_weight, needs_bias, needs_gain = mask
    dx = x.new_zeros(x.shape) if needs_x else x.new_empty(0)
    dweight = weight.new_zeros(weight.shape) if needs_weight else x.new_empty(0)
    dgain = weight.new_zeros(weight.shape[0]) if needs_gain else x.new_empty(0)
    spans = _spans(weight, key, grid_thresholds, grid, shadows)
    factors = _factors(weight, key, shadows, noise, amount)
    chunks = (tensor.chunk(shadows) for tensor in (x, dy, dx if needs_x else x))
    for x_chunk, dy_chunk, dx_chunk, (out, into), factor in zip(*chunks, spans, factors, strict=True):
        dy_part, x_part = dy_chunk[:, out.shadow], x_chunk[:, into.shadow]
        if needs_x:
            dx_chunk[:, into.shadow] = dy_part @ _shadow(weight, gain, out, into, factor)
        if needs_weight or needs_gain:
            unscaled = dy_part.mT @ x_part
            if factor is not None:
                unscaled = (unscaled * factor[out.shadow, into.shadow]).to(weight.dtype)
            if needs_gain:
                dgain[out.shadow] += (unscaled * _turned(weight[out.plain, into.plain], out, into)).sum(1)
            if needs_weight:
                scaled = unscaled if gain is None else unscaled * _gain_of(gain, out).to(weight.dtype)
                dweight[out.plain, into.plain] += _turned(scaled, out, into)
    if needs_gain and gain is not None:
        dgain = (dgain.sum() if gain.numel() == 1 else dgain).reshape(gain.shape).to(gain.dtype)
    return dx, dweight, dy.sum(0) if needs_bias else x.new_empty(0), dgain


implement("shadow_linear", "library", _fwd)
implement("shadow_linear_bwd", "library", _bwd)
