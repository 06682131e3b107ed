"""The CUDA C++ backend, for depthwise convolutions: one launch a pass, with the draw inside.

The kernels are in csrc/cuda/depthwise*. They register themselves for the schemas below when the library is loaded; this
file allocates what they write.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wat_kernels.cuda_launch import dense, multiprocessors, refusal, stream_of
from wat_kernels.dispatch import Call
from wat_kernels.ops.conv.geometry import Convolution, memory_format, new
from wat_kernels.qualified import qualified
from wat_kernels.signature import Draw, Gradients, gain_gradient, gradients
from wat_kernels.torch_library import LIBRARY, implement_shadow_op

_MOST_TAPS = 1024
_DRAW = (
    "Tensor key, Tensor thresholds, Tensor taps, Tensor taps_t, int[2] stride, int[4] padding, int[2] dilation, "
    "int shadows, int noise, float amount"
)

LIBRARY.define(
    f"cuda_depthwise_gather(Tensor source, Tensor weight, Tensor? bias, Tensor? gain, {_DRAW}, Tensor(a!) result, "
    "bool backward, int multiprocessors, int stream) -> ()"
)
LIBRARY.define(
    f"cuda_depthwise_weight(Tensor dy, Tensor x, Tensor weight, Tensor? gain, {_DRAW}, Tensor(a!)? dweight, "
    "Tensor(b!)? dbias, Tensor(c!)? dgain, Tensor(d!) arrived, int multiprocessors, int stream) -> ()"
)


RUNS_ON = "cuda"


def supports(call: Call) -> tuple[bool, str]:
    reason = refusal(call)
    if not reason and not call.groups == call.in_channels == call.out_channels:
        reason = (
            f"{call.in_channels} channels to {call.out_channels} in {call.groups} groups; it takes depthwise "
            "convolutions, groups = input channels = output channels"
        )
    if not reason and math.prod(call.kernel) > _MOST_TAPS:
        reason = f"the kernel is {'x'.join(map(str, call.kernel))}; it takes up to {_MOST_TAPS} taps"
    if not reason and len(call.kernel) > 2:
        reason = "it takes convolutions of 1 and 2 dimensions"
    return not reason, reason


def worthwhile(call: Call) -> tuple[bool, str]:
    """Once this GPU has been seen to compute right with it."""
    return qualified("shadow_conv", "cuda", call)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, draw: Draw, layout: Convolution
) -> Tensor:
    """x (N, C, H, W), weight (C, 1, kh, kw), bias (C,), gain (), (1,) or (C,) -> (N, C, H_out, W_out). Or without H and kh."""
    form = memory_format(x, weight)
    y = new(x, layout.output_shape(x, weight), form)
    if y.numel():
        x, weight, layout = _of_images(x), _of_images(weight), layout if x.ndim == 4 else layout.of_images()
        torch.ops.wat_kernels.cuda_depthwise_gather(
            _in_format(x, form), _one_tap_stride(weight), dense(bias), dense(gain), *_drawn(draw, layout), _of_images(y),
            layout.transposed,
            *_device(x),
        )  # fmt: skip
    return y


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, draw: Draw, layout: Convolution, mask: Sequence[bool]
) -> Gradients:
    """The gradients of x, weight, bias and gain where `mask` asks for them; empty tensors elsewhere.

    dx is one launch; the others are one together.
    """
    needs_x, needs_weight, needs_bias, needs_gain = mask
    form, drawn = memory_format(x, weight), _drawn(draw, layout if x.ndim == 4 else layout.of_images())
    weight_read, gain_read = _one_tap_stride(_of_images(weight)), dense(gain)
    dy = _in_format(_of_images(dy), form)
    dx = new(x, x.shape, form) if needs_x else None
    if dx is not None and dx.numel():
        if dy.numel():
            torch.ops.wat_kernels.cuda_depthwise_gather(
                dy, weight_read, None, gain_read, *drawn, _of_images(dx), not layout.transposed, *_device(x)
            )
        else:
            dx.zero_()
    dweight = new(weight, weight.shape, form) if needs_weight else None
    each = dy.new_empty(weight.shape[0], dtype=torch.float32) if needs_gain else None
    dbias = None
    if needs_bias:  # of a transposed convolution the kernel adds up x, which is in place of dy
        dbias = dy.sum((0, 2, 3)) if layout.transposed else dy.new_empty(weight.shape[0])
    summed = None if layout.transposed else dbias
    if dweight is not None or summed is not None or each is not None:
        if dy.numel():
            x_read = _in_format(_of_images(x), form)
            images = (x_read, dy) if layout.transposed else (dy, x_read)
            torch.ops.wat_kernels.cuda_depthwise_weight(
                *images, weight_read, gain_read, *drawn, None if dweight is None else _of_images(dweight), summed, each,
                arrivals(x.device, x.shape[1]), *_device(x),
            )  # fmt: skip
        else:
            for gradient in (dweight, summed, each):
                if gradient is not None:
                    gradient.zero_()
    dgain = None if each is None or gain is None else gain_gradient(each, gain)
    return gradients(x, dx, dweight, dbias, dgain)


def _drawn(draw: Draw, layout: Convolution) -> tuple:
    """draw and layout as the kernels' ops take them."""
    return (
        draw.key, *draw.table, layout.stride, layout.padding, layout.dilation, draw.shadows, draw.noise, draw.amount,
    )  # fmt: skip


def _of_images(tensor: Tensor) -> Tensor:
    """Sequences, or their kernels, as images of height 1: a view."""
    return tensor if tensor.ndim == 4 else tensor.unsqueeze(2)


def _in_format(image: Tensor, form: torch.memory_format) -> Tensor:
    """The image in the format of the result: itself, or a copy. channels_last needs adjacent channels only."""
    if form == torch.channels_last and image.stride(1) == 1:
        return image
    return image.contiguous(memory_format=form)


def _one_tap_stride(weight: Tensor) -> Tensor:
    height, width = weight.shape[2:]
    return weight if height == 1 or width == 1 or weight.stride(2) == width * weight.stride(3) else weight.contiguous()


def _device(tensor: Tensor) -> tuple[int, int]:
    """Multiprocessors, and the address of the stream."""
    return multiprocessors(tensor.device), stream_of(tensor)


def arrivals(device: torch.device, channels: int) -> Tensor:
    """Counters, as many as a weight gradient of so many channels needs at most.

    Zeroed at each call. Kept ones would save a fill, but could lie in the memory of a CUDA graph that was recorded around
    the call, and be gone with it.
    """
    return torch.zeros(2 * channels + 4 * multiprocessors(device), dtype=torch.int32, device=device)


implement_shadow_op("shadow_conv", "cuda", forward, backward, "CUDA")
