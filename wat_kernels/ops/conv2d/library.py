"""Materialise the active taps of SW, call the vendor's convolution: the honest baseline, and a fallback.

On the CPU the drawn row is read, so that the kernel can be cropped to the rectangle of its active taps: a translated
kernel is a smaller kernel with another padding, and nothing is computed outside of it. On an accelerator that would mean
waiting for the device at each call; SW is whole there, with zeros at the other taps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wat_kernels import noise_op
from wat_kernels.dispatch import Call
from wat_kernels.draw import dense_maps, draw_rows_from, drawn_on_host
from wat_kernels.ops.conv2d.geometry import Convolution, Padding, laid_out, memory_format
from wat_kernels.signature import Draw, Gradients, gain_gradient, gradients
from wat_kernels.torch_library import implement_shadow_op


def supports(call: Call) -> tuple[bool, str]:
    return call.dtype.is_floating_point, f"{call.dtype} is not a floating-point dtype"


class Rectangle(NamedTuple):
    """The active taps' bounding rectangle: rows top..bottom and columns left..right of the kernel, inclusive."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        return self.bottom - self.top + 1, self.right - self.left + 1

    @property
    def area(self) -> int:
        return self.size[0] * self.size[1]


def active_rectangle(active: Sequence[int], kernel: Sequence[int]) -> Rectangle | None:
    """Of row-major tap indices; None where no tap is active."""
    if not active:
        return None
    rows, columns = [tap // kernel[1] for tap in active], [tap % kernel[1] for tap in active]
    return Rectangle(min(rows), max(rows), min(columns), max(columns))


def cropped_padding(
    padding: Sequence[int], rectangle: Rectangle, kernel: Sequence[int], dilation: Sequence[int]
) -> Padding:
    """The padding with which the cropped kernel gives what the whole one gave; negative where x itself is cropped."""
    return (
        padding[0] - rectangle.top * dilation[0],
        padding[1] - (kernel[0] - 1 - rectangle.bottom) * dilation[0],
        padding[2] - rectangle.left * dilation[1],
        padding[3] - (kernel[1] - 1 - rectangle.right) * dilation[1],
    )


class _Shadow(NamedTuple):
    """One chunk's SW, cropped, and how the convolution has to be called with it."""

    map: Tensor  # (T, K): rows of M for the taps of the rectangle
    noise: _Noise | None
    weight: Tensor  # (O, I, h, w)
    pad: Padding  # what x is padded or cropped by before the call
    symmetric: tuple[int, int]  # what the call pads


class _Noise(NamedTuple):
    """The elementwise noise of one shadow, on the taps of its rectangle."""

    draw: Draw
    shadow: int
    kernel: Sequence[int]
    rectangle: Rectangle

    def multiply(self, part: Tensor) -> None:
        """part (O, I, h, w) times the noise of these elements of SW, in place: element e is (o * K + t) * I + i."""
        channels, width = part.shape[1], self.kernel[1]
        in_order = part.permute(0, 2, 3, 1)  # as the elements are numbered
        noise_op.multiply(
            in_order, in_order, self.draw.key, self.shadow, self.draw.noise, self.draw.amount,
            first=(self.rectangle.top * width + self.rectangle.left) * channels,
            steps=(self.kernel[0] * width * channels, width * channels, channels, 1),
        )  # fmt: skip


def _form_shadows(weight: Tensor, gain: Tensor | None, draw: Draw, layout: Convolution) -> Iterator[_Shadow | None]:
    """What each chunk convolves with, scaled by the gain; None for a chunk whose row has no active tap.

    One after the other, so that there is never more than one SW.
    """
    kernel = weight.shape[2:]
    count = kernel[0] * kernel[1]
    compute = torch.promote_types(weight.dtype, torch.float32)
    thresholds, taps, _ = draw.table
    drawn_rows = draw_rows_from(thresholds, draw.key, draw.shadows)
    lines, maps = taps[drawn_rows], dense_maps(taps, drawn_rows, count).to(compute)
    whole = not drawn_on_host(draw.key)
    for s in range(draw.shadows):
        active = range(count) if whole else lines[s, 1 : 1 + int(lines[s, 0])].tolist()
        rectangle = active_rectangle(active, kernel)
        if rectangle is None:
            yield None
            continue
        rows = range(rectangle.top, rectangle.bottom + 1)
        inside = [r * kernel[1] + c for r in rows for c in range(rectangle.left, rectangle.right + 1)]
        tap_map = maps[s] if len(inside) == count else maps[s, inside]
        shadow = torch.einsum("tp,oip->oit", tap_map, weight.flatten(2).to(compute)).unflatten(2, rectangle.size)
        noise = _Noise(draw, s, kernel, rectangle) if draw.noise else None
        if noise is not None:
            noise.multiply(shadow)
        if gain is not None:
            shadow *= gain.reshape(-1, 1, 1, 1).to(compute)
        top, bottom, left, right = cropped_padding(layout.padding, rectangle, kernel, layout.dilation)
        symmetric = (top if top == bottom >= 0 else 0, left if left == right >= 0 else 0)
        pad = (top - symmetric[0], bottom - symmetric[0], left - symmetric[1], right - symmetric[1])
        yield _Shadow(tap_map, noise, shadow.to(weight.dtype), pad, symmetric)


def _window(x: Tensor, pad: Padding) -> Tensor:
    """x (N, C, H, W) with `pad` zeros around it, or cropped where `pad` is negative."""
    if not any(pad):
        return x
    top, bottom, left, right = pad
    height, width = x.shape[2:]
    if max(pad) > 0:
        x = torch.nn.functional.pad(x, (max(left, 0), max(right, 0), max(top, 0), max(bottom, 0)))
    start_y, start_x = max(-top, 0), max(-left, 0)
    return x[:, :, start_y : start_y + height + top + bottom, start_x : start_x + width + left + right]


def _unwindow(grad: Tensor, pad: Padding, size: Sequence[int]) -> Tensor:
    """The gradient of `_window`: back to (N, C, H, W) with `size` = (H, W)."""
    if not any(pad):
        return grad
    top, bottom, left, right = pad
    return _window(grad, (-top, -bottom, -left, -right)) if max(pad) <= 0 else _clip(grad, pad, size)


def _clip(grad: Tensor, pad: Padding, size: Sequence[int]) -> Tensor:
    """`_unwindow` for windows that reach outside: copies the part both share."""
    full = grad.new_zeros(*grad.shape[:2], *size)
    spans = []
    for start, length, extent in ((-pad[0], grad.shape[2], size[0]), (-pad[2], grad.shape[3], size[1])):
        spans.append((max(start, 0), max(min(start + length, extent), max(start, 0)), start))
    (y0, y1, dy), (x0, x1, dx) = spans
    full[:, :, y0:y1, x0:x1] = grad[:, :, y0 - dy : y1 - dy, x0 - dx : x1 - dx]
    return full


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, draw: Draw, layout: Convolution
) -> Tensor:
    parts = []
    for chunk, shadow in zip(_chunks(x, draw), _form_shadows(weight, gain, draw, layout), strict=True):
        if shadow is None:
            empty = x.new_zeros(layout.output_shape(chunk, weight))
            parts.append(empty if bias is None else empty + bias.reshape(-1, 1, 1))
        else:
            window = _window(chunk, shadow.pad)
            parts.append(
                torch.conv2d(
                    window, shadow.weight, bias, layout.stride, shadow.symmetric, layout.dilation, layout.groups
                )
            )
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
        dx, dshadow, _ = torch.ops.aten.convolution_backward(
            dy_chunk,
            _window(chunk, shadow.pad),
            shadow.weight,
            None,
            layout.stride,
            shadow.symmetric,
            layout.dilation,
            False,
            [0, 0],
            layout.groups,
            [needs_x, needs_weight or needs_gain, False],
        )
        if needs_x:
            x_parts.append(_unwindow(dx, shadow.pad, x.shape[2:]))
        if needs_weight or needs_gain:
            dshadow = dshadow.to(compute)
            if shadow.noise is not None:
                shadow.noise.multiply(dshadow)
            unscaled += torch.einsum("tp,oit->oip", shadow.map, dshadow.flatten(2))
    dgain = None
    if needs_gain and gain is not None:
        dgain = gain_gradient((unscaled * weight.flatten(2)).sum((1, 2)), gain)
    if gain is not None:
        unscaled *= gain.reshape(-1, 1, 1)
    return gradients(
        x,
        laid_out(torch.cat(x_parts), form) if needs_x else None,
        laid_out(dweight.to(weight.dtype), form) if needs_weight else None,
        dy.sum((0, 2, 3)) if needs_bias else None,
        dgain,
    )


implement_shadow_op("shadow_conv2d", "library", forward, backward)
