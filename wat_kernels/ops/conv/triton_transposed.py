"""A transposed convolution by the passes of the plain one, which has x and y exchanged: what is around their launches.

The kernels of the plain convolution apply a gain of one number. Of one for each channel, which are the columns of the
weight here and its rows there, the data gradient knows nothing, nor does it of a bias: y is scaled and shifted after it,
in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wat_kernels.ops.conv.geometry import Convolution, laid_out, memory_format, new
from wat_kernels.signature import Draw, Gradients, gain_gradient, gradients

_SLICE = 2**20  # elements of a weight that are looked at together


def forward(
    data_gradient: Callable, x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, draw: Draw, layout: Convolution
) -> Tensor:  # fmt: skip
    """x (N, C, H, W), weight (C, O / groups, kh, kw), bias (O,), gain (), (1,) or (O,) -> (N, O, H_out, W_out).

    data_gradient: (dy, dx, weight, gain, draw, layout) of the plain convolution, which writes to dx
    """
    y = new(x, layout.output_shape(x, weight), memory_format(x, weight))
    each = gain is not None and gain.numel() > 1
    if y.numel():
        data_gradient(x, y, weight, None if each else gain, draw, layout._replace(transposed=False))
    along = (-1, *[1] * (x.ndim - 2))
    if each and gain is not None:
        y.mul_(gain.reshape(along))
    return y if bias is None else y.add_(bias.reshape(along))


def backward(
    plain_forward: Callable, plain_backward: Callable, dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, draw: Draw,
    layout: Convolution, mask: Sequence[bool],
) -> Gradients:  # fmt: skip
    """The gradients of x, weight, bias and gain where `mask` asks for them, by both passes of the plain convolution."""
    needs_x, needs_weight, needs_bias, needs_gain = mask
    plain, form = layout._replace(transposed=False), memory_format(x, weight)
    each = gain if gain is not None and gain.numel() > 1 else None
    one = gain if each is None else None
    dx = dweight = dgain = None
    if needs_x:
        scaled = dy if each is None else dy * each.reshape(-1, *[1] * (dy.ndim - 2)).to(dy.dtype)
        dx = laid_out(plain_forward(scaled, weight, None, one, draw, plain), form)
    if needs_weight or needs_gain:
        wanted = (False, needs_weight or each is not None, False, needs_gain and one is not None)
        _, dweight, _, dgain = plain_backward(x, dy, weight, one, draw, plain, wanted)
        if each is not None:
            if needs_gain:
                dgain = gain_gradient(_products(dweight, weight, layout.groups), each)
            _by_group(dweight, layout.groups).mul_(each.view(layout.groups, 1, -1, *[1] * (weight.ndim - 2)))
        dweight = laid_out(dweight, form) if needs_weight else None
    dbias = dy.sum((0, *range(2, dy.ndim))) if needs_bias else None
    return gradients(x, dx, dweight, dbias, dgain if needs_gain else None)


def _by_group(weight: Tensor, groups: int) -> Tensor:
    """(C, O / groups, ...) as (groups, C / groups, O / groups, ...), a view."""
    return weight.unflatten(0, (groups, -1))


def _products(unscaled: Tensor, weight: Tensor, groups: int) -> Tensor:
    """<PW, dPW> of each output channel, (O,) fp32, a few rows of the weight at a time."""
    total = weight.new_zeros(groups, weight.shape[1], dtype=torch.float32)
    unscaled, weight = _by_group(unscaled, groups), _by_group(weight, groups)
    rows = max(1, _SLICE * weight.shape[1] // weight.numel())
    for at in range(0, weight.shape[1], rows):
        part = unscaled[:, at : at + rows].float() * weight[:, at : at + rows].float()
        total += part.sum((1, *range(3, part.ndim)))
    return total.flatten()
