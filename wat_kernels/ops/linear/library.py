"""Materialise SW, call the vendor's matrix product: the honest baseline, and a fallback.

On the CPU a moved or flipped matrix is read through a view: only the part of PW that stays inside is multiplied. On an
accelerator that would mean waiting for the drawn shift; SW is gathered whole there, with zeros in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wat_kernels import noise_op
from wat_kernels.dispatch import Call
from wat_kernels.draw import drawn_on_host
from wat_kernels.matrix_grid import draw_matrix_grid
from wat_kernels.ops.linear.reference import source_index
from wat_kernels.ops.linear.schema import Linear
from wat_kernels.signature import Draw, Gradients, gain_gradient, gradients
from wat_kernels.torch_library import implement_shadow_op


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


class _Part:
    """The part of one shadow's SW that is multiplied, and the way back from it to PW.

    copies: whether `moved` makes a tensor of its own, that may be written to
    """

    copies = False

    def __init__(self, weight: Tensor, out: slice, into: slice):
        self.weight, self.out, self.into = weight, out, into

    def moved(self) -> Tensor:
        """PW as this part of SW sees it."""
        return self.weight

    def add_back(self, gradient: Tensor, total: Tensor) -> None:
        """Adds the gradient of this part to that of PW."""
        total += gradient


class _Window(_Part):
    """What stays inside, through a view of PW."""

    def __init__(self, weight: Tensor, out: _Span, into: _Span):
        super().__init__(weight, out.shadow, into.shadow)
        self._plain = (out.plain, into.plain)
        self._flipped = [axis for axis, span in enumerate((out, into)) if span.flip]
        self.copies = bool(self._flipped)

    def moved(self) -> Tensor:
        part = self.weight[self._plain]
        return part.flip(self._flipped) if self._flipped else part

    def add_back(self, gradient: Tensor, total: Tensor) -> None:
        total[self._plain] += gradient.flip(self._flipped) if self._flipped else gradient


class _Gathered(_Part):
    """All of SW, its indices computed on the device. flip, shift: of both axes, (1,) int64 each."""

    copies = True

    def __init__(self, weight: Tensor, flips: Sequence[Tensor], shifts: Sequence[Tensor]):
        super().__init__(weight, slice(0, weight.shape[0]), slice(0, weight.shape[1]))
        self._there = [source_index(*axis) for axis in zip(weight.shape, flips, shifts, strict=True)]
        # line l of SW shows line l - shift, or size - 1 - l - shift where it is flipped, so that line p of PW is shown
        # by line p + shift, or by size - 1 - p - shift: the same with the other sign, or the same
        back = [torch.where(flip.bool(), shift, -shift) for flip, shift in zip(flips, shifts, strict=True)]
        self._back = [source_index(*axis) for axis in zip(weight.shape, flips, back, strict=True)]

    def moved(self) -> Tensor:
        return _gather(self.weight, self._there)

    def add_back(self, gradient: Tensor, total: Tensor) -> None:
        total += _gather(gradient, self._back)


def _gather(matrix: Tensor, axes: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    (rows, rows_inside), (columns, columns_inside) = axes
    found = matrix[rows.view(-1, 1), columns.view(1, -1)]
    return found.masked_fill_(~(rows_inside.view(-1, 1) & columns_inside.view(1, -1)), 0)


def _parts(weight: Tensor, draw: Draw) -> Iterator[_Part]:
    """One for each shadow."""
    out_features, in_features = weight.shape
    if draw.table is None:
        yield from [_Part(weight, slice(0, out_features), slice(0, in_features))] * draw.shadows
        return
    thresholds, rows = draw.table
    draws = torch.stack(draw_matrix_grid(thresholds, rows, draw.key, draw.shadows), dim=1)  # (S, 4)
    if drawn_on_host(draw.key):
        for flip_out, flip_in, shift_out, shift_in in draws.tolist():
            out, into = _span(out_features, bool(flip_out), shift_out), _span(in_features, bool(flip_in), shift_in)
            yield _Window(weight, out, into)
    else:
        for s in range(draw.shadows):
            flip_out, flip_in, shift_out, shift_in = draws[s].unsqueeze(1).unbind()
            yield _Gathered(weight, (flip_out, flip_in), (shift_out, shift_in))


class _Noise(NamedTuple):
    """The elementwise noise of one shadow."""

    draw: Draw
    shadow: int

    def multiply(self, source: Tensor, out: Tensor, part: _Part) -> Tensor:
        """source times the noise of this part of SW, written to `out` and returned."""
        width = part.weight.shape[1]
        first = part.out.start * width + part.into.start
        draw = self.draw
        return noise_op.multiply(
            source, out, draw.key, self.shadow, draw.noise, draw.amount, first=first, steps=(width, 1)
        )


def _shadow(part: _Part, gain: Tensor | None, draw: Draw, shadow: int) -> Tensor:
    """This part of SW, scaled by the gain. Not to be written to: it may be PW itself."""
    plain = found = part.moved()
    if draw.noise:
        found = _Noise(draw, shadow).multiply(plain, plain if part.copies else torch.empty_like(plain), part)
    if gain is None:
        return found
    scale = _gain_of(gain, part).to(found.dtype)
    return found.mul_(scale) if draw.noise else found * scale


def _gain_of(gain: Tensor, part: _Part) -> Tensor:
    """(1, 1) or (lines, 1): the gain of the output lines of this part."""
    return gain.reshape(-1, 1) if gain.numel() == 1 else gain[part.out].unsqueeze(1)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, draw: Draw, layout: Linear) -> Tensor:
    parts = _parts(weight, draw)
    if draw.table is None and draw.shadows == 1:
        return torch.nn.functional.linear(x, _shadow(next(parts), gain, draw, 0), bias)
    y = x.new_zeros(x.shape[0], weight.shape[0])
    chunks = x.chunk(draw.shadows), y.chunk(draw.shadows)
    for s, (chunk, y_chunk, part) in enumerate(zip(*chunks, parts, strict=True)):
        y_chunk[:, part.out] = chunk[:, part.into] @ _shadow(part, gain, draw, s).mT
    return y if bias is None else y.add_(bias)


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, draw: Draw, layout: Linear, mask: Sequence[bool]
) -> Gradients:
    needs_x, needs_weight, needs_bias, needs_gain = mask
    whole = draw.table is None and draw.shadows == 1  # the sum over shadows has one term, and nothing moved
    dx = x.new_zeros(x.shape) if needs_x else None
    dweight = weight.new_zeros(weight.shape) if needs_weight and not whole else None
    each = weight.new_zeros(weight.shape[0])
    chunks = (tensor.chunk(draw.shadows) for tensor in (x, dy, x if dx is None else dx))
    for s, (x_chunk, dy_chunk, dx_chunk, part) in enumerate(zip(*chunks, _parts(weight, draw), strict=True)):
        dy_part, x_part = dy_chunk[:, part.out], x_chunk[:, part.into]
        if needs_x:
            dx_chunk[:, part.into] = dy_part @ _shadow(part, gain, draw, s)
        if needs_weight or needs_gain:
            gradient = dy_part.mT @ x_part
            if draw.noise:
                _Noise(draw, s).multiply(gradient, gradient, part)
            if needs_gain:
                each[part.out] += (gradient * part.moved()).sum(1)
            if needs_weight:
                if gain is not None:
                    gradient *= _gain_of(gain, part).to(weight.dtype)
                if dweight is None:
                    dweight = gradient
                else:
                    part.add_back(gradient, dweight)
    dgain = gain_gradient(each, gain) if needs_gain and gain is not None else None
    return gradients(x, dx, dweight, dy.sum(0) if needs_bias else None, dgain)


implement_shadow_op("shadow_linear", "library", forward, backward)
