"""Materialise the active taps of SW, call the vendor's convolution: the honest baseline, and a fallback.

On the CPU the drawn row is read, so that the kernel can be cropped to the box of its active taps: a translated kernel
is a smaller kernel with another padding, and nothing is computed outside of it. On an accelerator that would mean
waiting for the device at each call; SW is whole there, with zeros at the other taps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wat_kernels import noise_op
from wat_kernels.dispatch import Call
from wat_kernels.draw import dense_maps, draw_rows_from, drawn_on_host
from wat_kernels.ops.conv.geometry import Convolution, laid_out, memory_format
from wat_kernels.signature import Draw, Gradients, gain_gradient, gradients
from wat_kernels.torch_library import implement_shadow_op


def supports(call: Call) -> tuple[bool, str]:
    return call.dtype.is_floating_point, f"{call.dtype} is not a floating-point dtype"


class Box(NamedTuple):
    """The active taps' bounding box: along each axis of the kernel the first and the last of them, inclusive."""

    first: tuple[int, ...]
    last: tuple[int, ...]

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(last - first + 1 for first, last in zip(self.first, self.last, strict=True))

    @property
    def taps(self) -> int:
        return math.prod(self.size)

    def inside(self, kernel: Sequence[int]) -> list[int]:
        """The taps of the box as indices of the whole kernel, row-major."""
        found = [0]
        for first, last, size in zip(self.first, self.last, kernel, strict=True):
            found = [outer * size + at for outer in found for at in range(first, last + 1)]
        return found


def active_box(active: Sequence[int], kernel: Sequence[int]) -> Box | None:
    """Of row-major tap indices; None where no tap is active."""
    if not active:
        return None
    places, step = [], math.prod(kernel)
    for size in kernel:
        step //= size
        places.append([tap // step % size for tap in active])
    return Box(tuple(map(min, places)), tuple(map(max, places)))


def cropped_padding(
    padding: Sequence[int], box: Box, kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """The padding with which the cropped kernel gives what the whole one gave, transposed or not.

    Negative where x itself is cropped, or y is wider than what is computed if transposed.
    """
    cut = zip(padding[::2], padding[1::2], box.first, box.last, kernel, dilation, strict=True)
    return tuple(
        part
        for before, behind, first, last, size, step in cut
        for part in (before - first * step, behind - (size - 1 - last) * step)
    )


class _Shadow(NamedTuple):
    """One chunk's SW, cropped, and how the convolution has to be called with it."""

    map: Tensor  # (T, K): rows of M for the taps of the box
    noise: _Noise | None
    weight: Tensor  # (A, B, *box)
    pad: tuple[int, ...]  # what x is padded or cropped by before the call, or y, the other way, after a transposed one
    symmetric: tuple[int, ...]  # what the call pads

    def settings(self, layout: Convolution) -> tuple:
        """What torch's convolution and its backward take after the weight and the bias."""
        none = (0,) * len(self.symmetric)
        return layout.stride, self.symmetric, layout.dilation, layout.transposed, none, layout.groups


class _Noise(NamedTuple):
    """The elementwise noise of one shadow, on the taps of its box."""

    draw: Draw
    shadow: int
    kernel: Sequence[int]
    box: Box

    def multiply(self, part: Tensor) -> None:
        """part (A, B, *box) times the noise of these elements of SW, in place: element e is (a * K + t) * B + b."""
        in_order = part.movedim(1, -1)  # as the elements are numbered
        steps = [part.shape[1]]
        for size in reversed(self.kernel):
            steps.insert(0, steps[0] * size)
        first = sum(at * step for at, step in zip(self.box.first, steps[1:], strict=True))
        if part.ndim < 5:
            self._multiply(in_order, first, (*steps, 1))
            return
        for plane in range(part.shape[2]):  # one dimension less
            self._multiply(in_order[:, plane], first + plane * steps[1], (steps[0], *steps[2:], 1))

    def _multiply(self, part: Tensor, first: int, steps: tuple[int, ...]) -> None:
        draw = self.draw
        noise_op.multiply(part, part, draw.key, self.shadow, draw.noise, draw.amount, first=first, steps=steps)


def _form_shadows(weight: Tensor, gain: Tensor | None, draw: Draw, layout: Convolution) -> Iterator[_Shadow | None]:
    """What each chunk convolves with, scaled by the gain; None for a chunk whose row has no active tap.

    One after the other, so that there is never more than one SW.
    """
    kernel = weight.shape[2:]
    count = math.prod(kernel)
    compute = torch.promote_types(weight.dtype, torch.float32)
    thresholds, taps, _ = draw.table
    drawn_rows = draw_rows_from(thresholds, draw.key, draw.shadows)
    lines, maps = taps[drawn_rows], dense_maps(taps, drawn_rows, count).to(compute)
    whole = not drawn_on_host(draw.key)
    scale = None if gain is None else _along_weight(gain.to(compute), weight, layout)
    for s in range(draw.shadows):
        active = range(count) if whole else lines[s, 1 : 1 + int(lines[s, 0])].tolist()
        box = active_box(active, kernel)
        if box is None:
            yield None
            continue
        tap_map = maps[s] if box.taps == count else maps[s, box.inside(kernel)]
        shadow = torch.einsum("tp,oip->oit", tap_map, weight.flatten(2).to(compute)).unflatten(2, box.size)
        noise = _Noise(draw, s, kernel, box) if draw.noise else None
        if noise is not None:
            noise.multiply(shadow)
        if scale is not None:
            _by_group(shadow, layout).mul_(scale)
        padding = cropped_padding(layout.padding, box, kernel, layout.dilation)
        both = list(zip(padding[::2], padding[1::2], strict=True))
        symmetric = tuple(before if before == behind >= 0 else 0 for before, behind in both)
        pad = tuple(part - own for pair, own in zip(both, symmetric, strict=True) for part in pair)
        yield _Shadow(tap_map, noise, shadow.to(weight.dtype), pad, symmetric)


def _by_group(weight: Tensor, layout: Convolution) -> Tensor:
    """(A, B, ...) as (groups, A / groups, B, ...), a view: where the output channels of a transposed layout are two axes."""
    return weight.unflatten(0, (layout.groups, -1))


def _along_weight(gain: Tensor, weight: Tensor, layout: Convolution) -> Tensor:
    """The gain, of one element or (O,), as a factor of `_by_group(weight)`."""
    if gain.numel() > 1:
        gain = gain.view(layout.groups, 1, -1) if layout.transposed else gain.view(layout.groups, -1, 1)
    return gain.reshape(*gain.shape, *[1] * (weight.ndim - 2)) if gain.numel() > 1 else gain.reshape(())


def _window(x: Tensor, pad: Sequence[int]) -> Tensor:
    """x (N, C, *size) with `pad` zeros around it, or cropped where `pad` is negative."""
    sizes = x.shape[2:]
    if max(pad) > 0:
        torch_order = [max(part, 0) for at in range(len(pad) - 2, -1, -2) for part in pad[at : at + 2]]
        x = torch.nn.functional.pad(x, torch_order)
    for axis, (before, behind, size) in enumerate(zip(pad[::2], pad[1::2], sizes, strict=True), 2):
        if before < 0 or behind < 0:
            x = x.narrow(axis, max(-before, 0), size + before + behind)
    return x


def _unwindow(grad: Tensor, pad: Sequence[int], size: Sequence[int]) -> Tensor:
    """The gradient of `_window`: back to (N, C, *size)."""
    if max(pad) <= 0:
        return _window(grad, [-part for part in pad])
    full = grad.new_zeros(*grad.shape[:2], *size)
    to = full
    for axis, (before, extent) in enumerate(zip(pad[::2], size, strict=True), 2):
        low, high = max(-before, 0), min(grad.shape[axis] - before, extent)
        to = to.narrow(axis, min(low, extent), max(high - low, 0))
        grad = grad.narrow(axis, min(low + before, grad.shape[axis]), max(high - low, 0))
    to.copy_(grad)
    return full


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, draw: Draw, layout: Convolution
) -> Tensor:
    parts = []
    bias_of_y = None if bias is None else bias.reshape(-1, *[1] * (x.ndim - 2))
    for chunk, shadow in zip(_chunks(x, draw), _form_shadows(weight, gain, draw, layout), strict=True):
        shape = layout.output_shape(chunk, weight)
        if shadow is None:
            empty = x.new_zeros(shape)
            parts.append(empty if bias_of_y is None else empty + bias_of_y)
        elif not layout.transposed:
            window = _window(chunk, shadow.pad)
            parts.append(torch.convolution(window, shadow.weight, bias, *shadow.settings(layout)))
        elif any(shadow.pad):  # zeros may come around it, which have the bias, too
            part = torch.convolution(chunk, shadow.weight, None, *shadow.settings(layout))
            part = _unwindow(part, shadow.pad, shape[2:])
            parts.append(part if bias_of_y is None else part + bias_of_y)
        else:
            parts.append(torch.convolution(chunk, shadow.weight, bias, *shadow.settings(layout)))
    y = torch.cat(parts) if draw.shadows > 1 else parts[0]
    return laid_out(y, memory_format(x, weight))


def _chunks(tensor: Tensor, draw: Draw) -> Sequence[Tensor]:
    return tensor.chunk(draw.shadows) if draw.shadows > 1 else [tensor]


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, draw: Draw, layout: Convolution, mask: Sequence[bool]
) -> Gradients:
    needs_x, needs_weight, needs_bias, needs_gain = mask
    form = memory_format(x, weight)
    x_parts = []
    compute = torch.promote_types(weight.dtype, torch.float32)
    # not a view of something else: forward mode follows no view out of a function that is written in Python
    dweight = torch.zeros(weight.shape, dtype=compute, device=weight.device)
    unscaled = dweight.flatten(2)  # a view of it, the sum over shadows of M^T (dSW * eps)
    formed = _form_shadows(weight, gain, draw, layout)
    for chunk, dy_chunk, shadow in zip(_chunks(x, draw), _chunks(dy, draw), formed, strict=True):
        if shadow is None:
            x_parts.append(torch.zeros_like(chunk))
            continue
        windowed, other = (dy_chunk, chunk) if layout.transposed else (chunk, dy_chunk)
        windowed = _window(windowed, shadow.pad)
        dx, dshadow, _ = torch.ops.aten.convolution_backward(
            *((windowed, other) if layout.transposed else (other, windowed)),
            shadow.weight,
            None,
            *shadow.settings(layout),
            [needs_x, needs_weight or needs_gain, False],
        )
        if needs_x:
            x_parts.append(dx if layout.transposed else _unwindow(dx, shadow.pad, x.shape[2:]))
        if needs_weight or needs_gain:
            dshadow = dshadow.to(compute)
            if shadow.noise is not None:
                shadow.noise.multiply(dshadow)
            unscaled += torch.einsum("tp,oit->oip", shadow.map, dshadow.flatten(2))
    dgain = None
    if needs_gain and gain is not None:
        axis = 1 if layout.transposed else 2  # of _by_group: the channels that are summed over
        each = _by_group(unscaled * weight.flatten(2), layout).sum((axis, 3)).flatten()
        dgain = gain_gradient(each, gain)
    if gain is not None:
        _by_group(dweight, layout).mul_(_along_weight(gain, weight, layout))
    return gradients(
        x,
        laid_out(torch.cat(x_parts), form) if needs_x else None,
        laid_out(dweight.to(weight.dtype), form) if needs_weight else None,
        dy.sum((0, *range(2, dy.ndim))) if needs_bias else None,
        dgain,
    )


implement_shadow_op("shadow_conv", "library", forward, backward)
