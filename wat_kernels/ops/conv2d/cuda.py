"""The CUDA C++ backend, for depthwise convolutions: one launch a pass, with the draw inside.

The kernels are in csrc/cuda/depthwise*. They register themselves for the schemas below when the library is loaded; this
file allocates what they write.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wat_kernels.cuda_launch import multiprocessors, refusal, stream_of
from wat_kernels.dispatch import Call
from wat_kernels.ops.conv2d.geometry import memory_format, output_size
from wat_kernels.qualified import qualified
from wat_kernels.torch_library import LIBRARY, implement

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
        reason = f"the kernel is {call.kernel[0]}x{call.kernel[1]}; it takes up to {_MOST_TAPS} taps"
    return not reason, reason


def worthwhile(call: Call) -> tuple[bool, str]:
    """Once this GPU has been seen to compute right with it."""
    return qualified("shadow_conv2d", "cuda", call)


def _fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    key: Tensor,
    thresholds: Tensor,
    taps: Tensor,
    taps_t: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    shadows: int,
    noise: int,
    amount: float,
) -> Tensor:
    """x (N, C, H, W), weight (C, 1, kh, kw), bias (C,), gain (), (1,) or (C,) -> (N, C, H_out, W_out)."""
    form = memory_format(x, weight)
    size = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    y = torch.empty((x.shape[0], weight.shape[0], *size), dtype=x.dtype, device=x.device, memory_format=form)
    if y.numel():
        draw = (key, thresholds, taps, taps_t, stride, padding, dilation, shadows, noise, amount)
        torch.ops.wat_kernels.cuda_depthwise_gather(
            _in_format(x, form), _one_tap_stride(weight), _dense(bias), _dense(gain), *draw, y, False, *_device(x)
        )
    return y


def _bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    gain: Tensor | None,
    key: Tensor,
    thresholds: Tensor,
    taps: Tensor,
    taps_t: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    shadows: int,
    noise: int,
    amount: float,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight, bias and gain where `mask` asks for them; empty tensors elsewhere.

    dx is one launch; the others are one together.
    """
    needs_x, needs_weight, needs_bias, needs_gain = mask
    form = memory_format(x, weight)
    draw = (key, thresholds, taps, taps_t, stride, padding, dilation, shadows, noise, amount)
    weight_read, gain_read, dy = _one_tap_stride(weight), _dense(gain), _in_format(dy, form)
    dx = torch.empty_like(x, memory_format=form) if needs_x else x.new_empty(0)
    if dx.numel():
        if dy.numel():
            torch.ops.wat_kernels.cuda_depthwise_gather(dy, weight_read, None, gain_read, *draw, dx, True, *_device(x))
        else:
            dx.zero_()
    dweight = torch.empty_like(weight, memory_format=form) if needs_weight else None
    dbias = dy.new_empty(weight.shape[0]) if needs_bias else None
    per_channel = dy.new_empty(weight.shape[0], dtype=torch.float32) if needs_gain else None
    if any(mask[1:]):
        if dy.numel():
            arrived = arrivals(x.device, x.shape[1])
            torch.ops.wat_kernels.cuda_depthwise_weight(
                dy,
                _in_format(x, form),
                weight_read,
                gain_read,
                *draw,
                dweight,
                dbias,
                per_channel,
                arrived,
                *_device(x),
            )
        else:
            for gradient in (dweight, dbias, per_channel):
                if gradient is not None:
                    gradient.zero_()
    dgain = None
    if per_channel is not None and gain is not None:
        dgain = (per_channel.sum() if gain.numel() == 1 else per_channel).reshape(gain.shape).to(gain.dtype)
    dweight, dbias, dgain = (x.new_empty(0) if grad is None else grad for grad in (dweight, dbias, dgain))
    return dx, dweight, dbias, dgain


def _in_format(image: Tensor, form: torch.memory_format) -> Tensor:
    """The image in the format of the result: itself, or a copy. channels_last needs adjacent channels only."""
    if form == torch.channels_last and image.stride(1) == 1:
        return image
    return image.contiguous(memory_format=form)


def _one_tap_stride(weight: Tensor) -> Tensor:
    height, width = weight.shape[2:]
    return weight if height == 1 or width == 1 or weight.stride(2) == width * weight.stride(3) else weight.contiguous()


def _dense(vector: Tensor | None) -> Tensor | None:
    """A bias or a gain of a dtype and layout that kernels read."""
    if vector is None:
        return None
    readable = vector.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return (vector if readable else vector.float()).contiguous()


def _device(tensor: Tensor) -> tuple[int, int]:
    """Multiprocessors, and the address of the stream."""
    return multiprocessors(tensor.device), stream_of(tensor)


def arrivals(device: torch.device, channels: int) -> Tensor:
    """Counters, as many as a weight gradient of so many channels needs at the most.

    Zeroed at each call. Kept ones would save a fill, but could lie in the memory of a CUDA graph that was recorded around
    the call, and be gone with it.
    """
    return torch.zeros(2 * channels + 4 * multiprocessors(device), dtype=torch.int32, device=device)


implement("shadow_conv2d", "cuda", _fwd, "CUDA")
implement("shadow_conv2d_bwd", "cuda", _bwd, "CUDA")
