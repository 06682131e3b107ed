"""The Triton backend: draw, shadow and convolution in one launch a pass. This file is what runs on the host.

The kernels are in `triton_kernels.py` and `triton_bwd_weight.py`; this module can be imported without Triton.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from wat_kernels.dispatch import Call
from wat_kernels.ops.conv2d.geometry import memory_format, output_size
from wat_kernels.qualified import qualified
from wat_kernels.tap_table import identity_line
from wat_kernels.torch_library import implement

try:
    from wat_kernels.ops.conv2d.triton_bwd_weight import conv2d_bwd_weight_kernel
    from wat_kernels.ops.conv2d.triton_configs import IMAGE_CONFIGS, WEIGHT_CONFIGS
    from wat_kernels.ops.conv2d.triton_kernels import conv2d_bwd_data_kernel, conv2d_fwd_kernel
    from wat_kernels.ops.conv2d.triton_row import MAX_TAPS
    from wat_kernels.triton_launch import (
        INTERPRETED,
        Tuned,
        arrivals,
        fp32_precision,
        is_wide,
        noise_numbers,
        programs_wanted,
        refusal,
        splits_of,
    )

    _MISSING = ""
except ImportError as error:
    _MISSING, INTERPRETED = f"triton cannot be imported ({error})", False


def supports(call: Call) -> tuple[bool, str]:
    reason = _MISSING or refusal(call)
    if not reason and math.prod(call.kernel) > MAX_TAPS:
        reason = f"the kernel is {call.kernel[0]}x{call.kernel[1]}; it takes up to {MAX_TAPS} taps"
    return not reason, reason


def worthwhile(call: Call) -> tuple[bool, str]:
    """Once this GPU has been seen to compute right with it."""
    return qualified("shadow_conv2d", "triton", call)


# What makes a problem for the tuner; what is drawn, and so how many taps are computed, does not.
_PROBLEM = ("images", "groups", "in_channels", "out_channels", "height", "width", "out_height", "out_width", "stride_h",
            "stride_w", "shadows", "TAPS", "WIDTH", "NOISE", "PRECISION")  # fmt: skip


def _image_fits(columns: str) -> Callable[[dict], bool]:
    """Tiles at most twice as wide as what they cover, with room for the weight tiles that a row mixes or for noise."""

    def fits(a: dict) -> bool:
        if a["NOISE"] == 1 and a["BM"] * a["BN"] * a["BK"] > 128 * 128 * 32:  # Gaussian noise: registers
            return False
        if a["weight"].element_size() == 4 and a["PRECISION"] == "ieee" and a["BK"] > 16:
            return False  # without matrix units all of a step's operands are in registers
        stages = (a["BM"] + min(a["WIDTH"], 4) * a["BN"]) * a["BK"] * a["weight"].element_size() * a["num_stages"]
        return a["BN"] <= max(32, 2 * a[columns]) and (a["WIDTH"] == 1 or stages <= 160 * 1024)

    return fits


def _weight_fits(a: dict) -> bool:
    if a["NOISE"] == 1 and a["BO"] * a["BI"] * a["BP"] > 64 * 64 * 32:  # Gaussian noise: registers
        return False
    if a["weight"].element_size() == 4 and a["BO"] == 64 and (a["PRECISION"] == "ieee") != (a["BP"] == 16):
        return False  # short steps without matrix units, as for images; long ones with them
    return a["BO"] <= max(64, 2 * a["out_channels"]) and a["BI"] <= max(32, 2 * a["in_channels"])


def _all_taps(a: dict) -> dict:
    """The identity in the place of a kernel's table: what tuning measures with, whatever this launch draws."""
    taps = "taps" if "taps" in a else "taps_t"
    line = identity_line(a["TAPS"], a["WIDTH"])
    return {"thresholds": torch.full((1,), 2**32, device=a[taps].device), taps: line.to(a[taps].device), "rows": 1}


if not _MISSING:
    FORWARD = {
        b: Tuned(conv2d_fwd_kernel, c, _PROBLEM, _image_fits("out_channels"), _all_taps)
        for b, c in IMAGE_CONFIGS.items()
    }
    BWD_DATA = {
        b: Tuned(conv2d_bwd_data_kernel, c, _PROBLEM, _image_fits("in_channels"), _all_taps)
        for b, c in IMAGE_CONFIGS.items()
    }
    BWD_WEIGHT = {
        b: Tuned(conv2d_bwd_weight_kernel, c, _PROBLEM, _weight_fits, _all_taps, ["dgain"])
        for b, c in WEIGHT_CONFIGS.items()
    }


def forward_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, y: Tensor, key: Tensor, thresholds: Tensor,
    taps: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, shadows: int,
    noise: int, amount: float,
) -> tuple:  # fmt: skip
    """Everything that `conv2d_fwd_kernel` takes and a configuration does not set. Shapes as in `_fwd`."""
    tap_numbers = _tap_numbers(weight, taps)
    return (
        x, weight, bias, gain, y, key, thresholds, taps, len(thresholds), shadows, x.shape[0] // shadows, groups,
        weight.shape[1], weight.shape[0] // groups, *x.shape[2:], *y.shape[2:], *x.stride(), *_weight_strides(weight),
        *y.stride(), *stride, padding[0], padding[2], *dilation, *noise_numbers(noise, amount), *tap_numbers,
        bias is not None, _gain_kind(gain), noise, weight.shape[1] % 8 == 0, is_wide(x, weight, y), _precision(x),
    )  # fmt: skip


def bwd_data_arguments(
    dy: Tensor, weight: Tensor, gain: Tensor | None, dx: Tensor, key: Tensor, thresholds: Tensor, taps: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, shadows: int, noise: int,
    amount: float,
) -> tuple:  # fmt: skip
    """Everything that `conv2d_bwd_data_kernel` takes and a configuration does not set."""
    tap_numbers = _tap_numbers(weight, taps)
    return (
        dy, weight, gain, dx, key, thresholds, taps, len(thresholds), shadows, dx.shape[0] // shadows, groups,
        weight.shape[1], weight.shape[0] // groups, *dx.shape[2:], *dy.shape[2:], *dy.stride(),
        *_weight_strides(weight), *dx.stride(), *stride, padding[0], padding[2], *dilation,
        *noise_numbers(noise, amount), *tap_numbers, _gain_kind(gain), noise, weight.shape[1] % 8 == 0,
        is_wide(dy, weight, dx), _precision(dy),
    )  # fmt: skip


def bwd_weight_arguments(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, dweight: Tensor | None, dgain: Tensor | None,
    parts: Tensor | None, arrived: Tensor | None, key: Tensor, thresholds: Tensor, taps_t: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, shadows: int, noise: int,
    amount: float, programs: int,
) -> tuple:  # fmt: skip
    """Everything that `conv2d_bwd_weight_kernel` takes and a configuration does not set."""
    count, kernel_w, width, slots, _, _ = _tap_numbers(weight, taps_t)
    written = _weight_strides(weight if dweight is None else dweight)
    return (
        dy, x, weight, gain, dweight, dgain, parts, arrived, key, thresholds, taps_t, len(thresholds), shadows,
        x.shape[0] // shadows, groups, weight.shape[1], weight.shape[0] // groups, *x.shape[2:], *dy.shape[2:],
        *dy.stride(), *x.stride(), *_weight_strides(weight), *written, *stride, padding[0], padding[2], *dilation,
        *noise_numbers(noise, amount), programs, count, kernel_w, width, slots, dweight is not None,
        dgain is not None, _gain_kind(gain), noise, weight.shape[1] % 8 == 0, is_wide(dy, x, weight), _precision(x),
    )  # fmt: skip


def _tap_numbers(weight: Tensor, taps: Tensor) -> tuple[int, ...]:
    """TAPS, KERNEL_W, WIDTH, SLOTS, BITS, WORDS of the kernels."""
    count = weight.shape[2] * weight.shape[3]
    bits = max(1, (count - 1).bit_length())
    width = (taps.shape[1] - 1 - count) // (2 * count)
    return count, weight.shape[3], width, max(2, 1 << (count - 1).bit_length()), bits, -(-count // (64 // bits))


def _weight_strides(weight: Tensor) -> tuple[int, int, int]:
    """Of output channels, input channels and taps; `_one_tap_stride` has made sure that taps have one."""
    return weight.stride(0), weight.stride(1), weight.stride(3 if weight.shape[3] > 1 else 2)


def _one_tap_stride(weight: Tensor) -> Tensor:
    height, width = weight.shape[2:]
    one = height == 1 or width == 1 or weight.stride(2) == width * weight.stride(3)
    return weight if one else weight.contiguous()


def _channels_last(image: Tensor) -> Tensor:
    """Tiles are read along the channels. An image of another layout is copied, as vendors' libraries do."""
    return image if image.stride(1) == 1 else image.contiguous(memory_format=torch.channels_last)


def _gain_kind(gain: Tensor | None) -> int:
    return 0 if gain is None else 1 if gain.numel() == 1 else 2


def _precision(x: Tensor) -> str:
    cudnn: Any = torch.backends.cudnn  # its settings are not all known to type checkers
    return fp32_precision(cudnn.conv.fp32_precision) if x.dtype == torch.float32 else "ieee"


def _fwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, key: Tensor, thresholds: Tensor, taps: Tensor,
    taps_t: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, shadows: int,
    noise: int, amount: float,
) -> Tensor:  # fmt: skip
    """x (N, C, H, W), weight (O, C / groups, kh, kw), bias (O,), gain (), (1,) or (O,) -> (N, O, H_out, W_out)."""
    size = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    y = torch.empty(
        (x.shape[0], weight.shape[0], *size), dtype=x.dtype, device=x.device, memory_format=memory_format(x, weight)
    )
    if y.numel() == 0:
        return y
    arguments = forward_arguments(
        _channels_last(x), _one_tap_stride(weight), bias, gain, y, key, thresholds, taps, stride, padding, dilation,
        groups, shadows, noise, amount,
    )  # fmt: skip
    pixels, channels = x.shape[0] // shadows * size[0] * size[1], weight.shape[0] // groups

    def programs(meta):
        return groups * shadows * -(-pixels // meta["BM"]) * -(-channels // meta["BN"])

    FORWARD[x.element_size()].launch(programs, arguments)
    return y


def _bwd(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, key: Tensor, thresholds: Tensor, taps: Tensor,
    taps_t: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, shadows: int,
    noise: int, amount: float, mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, weight, bias and gain where `mask` asks for them; empty tensors elsewhere."""
    needs_x, needs_weight, needs_bias, needs_gain = mask
    form = memory_format(x, weight)
    dbias = dy.sum((0, 2, 3)) if needs_bias else x.new_empty(0)
    dy, weight_read = _channels_last(dy), _one_tap_stride(weight)
    rest = (stride, padding, dilation, groups, shadows, noise, amount)
    dx = torch.empty_like(x, memory_format=form) if needs_x else x.new_empty(0)
    if dx.numel():
        _bwd_data(dy, weight_read, gain, dx, key, thresholds, taps, *rest)
    dweight = torch.empty_like(weight, memory_format=form) if needs_weight else None
    dgain = None
    if needs_weight or needs_gain:
        dgain = _bwd_weight(
            dy, _channels_last(x), weight_read, gain, dweight, needs_gain, key, thresholds, taps_t, rest
        )
    return dx, x.new_empty(0) if dweight is None else dweight, dbias, x.new_empty(0) if dgain is None else dgain


def _bwd_data(dy, weight, gain, dx, key, thresholds, taps, stride, padding, dilation, groups, shadows, noise, amount):
    """Fills dx (N, C, H, W)."""
    arguments = bwd_data_arguments(
        dy, weight, gain, dx, key, thresholds, taps, stride, padding, dilation, groups, shadows, noise, amount
    )
    pixels = dx.shape[0] // shadows * -(-dx.shape[2] // stride[0]) * -(-dx.shape[3] // stride[1])
    channels = weight.shape[1]

    def programs(meta):
        tiles = shadows * -(-pixels // meta["BM"]) * -(-channels // meta["BN"])
        return groups * stride[0] * stride[1] * tiles

    BWD_DATA[dx.element_size()].launch(programs, arguments)


def _bwd_weight(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, dweight: Tensor | None, needs_gain: bool, key: Tensor,
    thresholds: Tensor, taps_t: Tensor, rest: tuple[Any, ...],
) -> Tensor | None:  # fmt: skip
    """Fills dweight where it is a tensor. Returns dgain, shaped as the gain, if asked."""
    groups, shadows = rest[3], rest[4]
    if weight.numel() == 0:
        return torch.zeros_like(gain) if needs_gain and gain is not None else None
    tuned = BWD_WEIGHT[x.element_size()]
    target = programs_wanted(x.device)
    pixels = dy.shape[0] // shadows * dy.shape[2] * dy.shape[3]
    channels = weight.shape[1]
    cut = tuple(_cut(config.kwargs, weight.shape, groups, pixels, target) for config in tuned.configs)
    scratch = max(splits * tiles * area if splits > 1 else 0 for splits, tiles, area in cut)
    parts = torch.empty(scratch, dtype=torch.float32, device=x.device) if scratch else None
    arrived = arrivals(x.device) if scratch else None
    narrowest = min(config.kwargs["BI"] for config in tuned.configs)
    per_tile = None
    if needs_gain:  # wider tiles leave lines of it unwritten
        lines = -(-channels // narrowest) * weight.shape[2] * weight.shape[3]
        per_tile = torch.zeros(lines, weight.shape[0], dtype=torch.float32, device=x.device)
    arguments = bwd_weight_arguments(
        dy, x, weight, gain, dweight, per_tile, parts, arrived, key, thresholds, taps_t, *(*rest, target)
    )

    def programs(meta):
        splits, tiles, _ = _cut(meta, weight.shape, groups, pixels, target)
        return splits * tiles

    tuned.launch(programs, arguments)
    if per_tile is None or gain is None:
        return None
    per_channel = per_tile.sum(0)
    return (per_channel.sum() if gain.numel() == 1 else per_channel).reshape(gain.shape).to(gain.dtype)


def _cut(meta: dict, shape: Sequence[int], groups: int, pixels: int, programs: int) -> tuple[int, int, int]:
    """(parts of the pixels, tiles of the weight, elements of a tile), as the kernel has them."""
    rows, columns = -(-(shape[0] // groups) // meta["BO"]), -(-shape[1] // meta["BI"])
    tiles = rows * columns * shape[2] * shape[3] * groups
    return splits_of(tiles, -(-pixels // meta["BP"]), programs), tiles, meta["BO"] * meta["BI"]


if not _MISSING:
    for _device in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
        implement("shadow_conv2d", "triton", _fwd, _device)
        implement("shadow_conv2d_bwd", "triton", _bwd, _device)
