"""The Triton backend: draw, shadow and convolution in one launch a pass. This file is what runs on the host.

The kernels are in `triton_kernels.py` and `triton_bwd_weight.py`; this module can be imported without Triton.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
        Planned,
        Tuned,
        dense,
        fp32_precision,
        is_wide,
        keep,
        meta_of,
        noise_numbers,
        plans,
        programs_wanted,
        refusal,
        splits_of,
    )

    _MISSING = ""
except ImportError as error:
    _MISSING, INTERPRETED = f"triton cannot be imported ({error})", False


RUNS_ON = "cuda"


def supports(call: Call) -> tuple[bool, str]:
    reason = _MISSING or refusal(call)
    if not reason and math.prod(call.kernel) > MAX_TAPS:
        reason = f"the kernel is {call.kernel[0]}x{call.kernel[1]}; it takes up to {MAX_TAPS} taps"
    return not reason, reason


def worthwhile(call: Call) -> tuple[bool, str]:
    """Once this GPU has been seen to compute right with it."""
    return qualified("shadow_conv2d", "triton", call)


# Multiply-adds from which a weight whose input channels are not adjacent is copied first. A prediction, of no GPU yet: the
# copy takes some 3 us, and a pass of so many multiply-adds 1.5 times that longer without it.
_REPACKED_FROM = 2**29

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
        b: Tuned(conv2d_bwd_weight_kernel, c, _PROBLEM, _weight_fits, _all_taps) for b, c in WEIGHT_CONFIGS.items()
    }
    _FORWARD_PLANS, _BACKWARD_PLANS = plans(), plans()


def forward_numbers(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, y: Tensor, thresholds: Tensor, taps: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, shadows: int, noise: int,
) -> tuple:  # fmt: skip
    """What `conv2d_fwd_kernel` takes after the noise's scale and cut and a configuration does not set. Shapes as in `_fwd`."""
    tap_numbers = _tap_numbers(weight, taps)
    return (
        len(thresholds), shadows, x.shape[0] // shadows, groups, weight.shape[1], weight.shape[0] // groups,
        *x.shape[2:], *y.shape[2:], *x.stride(), *_weight_strides(weight), *y.stride(), *stride, padding[0],
        padding[2], *dilation, *tap_numbers, bias is not None, _gain_kind(gain), noise, weight.shape[1] % 8 == 0,
        is_wide(x, weight, y), _precision(x),
    )  # fmt: skip


def bwd_data_numbers(
    dy: Tensor, weight: Tensor, gain: Tensor | None, dx: Tensor, thresholds: Tensor, taps: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, shadows: int, noise: int,
) -> tuple:  # fmt: skip
    """The same for `conv2d_bwd_data_kernel`."""
    tap_numbers = _tap_numbers(weight, taps)
    return (
        len(thresholds), shadows, dx.shape[0] // shadows, groups, weight.shape[1], weight.shape[0] // groups,
        *dx.shape[2:], *dy.shape[2:], *dy.stride(), *_weight_strides(weight), *dx.stride(), *stride, padding[0],
        padding[2], *dilation, *tap_numbers, _gain_kind(gain), noise, weight.shape[1] % 8 == 0,
        is_wide(dy, weight, dx), _precision(dy),
    )  # fmt: skip


def bwd_weight_numbers(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, dweight: Tensor | None, dgain: Tensor | None,
    thresholds: Tensor, taps_t: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    groups: int, shadows: int, noise: int, programs: int,
) -> tuple:  # fmt: skip
    """The same for `conv2d_bwd_weight_kernel`."""
    count, kernel_w, width, slots, _, _ = _tap_numbers(weight, taps_t)
    written = _weight_strides(weight if dweight is None else dweight)
    return (
        len(thresholds), shadows, x.shape[0] // shadows, groups, weight.shape[1], weight.shape[0] // groups,
        *x.shape[2:], *dy.shape[2:], *dy.stride(), *x.stride(), *_weight_strides(weight), *written, *stride,
        padding[0], padding[2], *dilation, programs, count, kernel_w, width, slots, dweight is not None,
        dgain is not None, _gain_kind(gain), noise, weight.shape[1] % 8 == 0, is_wide(dy, x, weight), _precision(x),
    )  # fmt: skip


def _tap_numbers(weight: Tensor, taps: Tensor) -> tuple[int, ...]:
    """TAPS, KERNEL_W, WIDTH, SLOTS, BITS, WORDS of the kernels."""
    count = weight.shape[2] * weight.shape[3]
    bits = max(1, (count - 1).bit_length())
    width = (taps.shape[1] - 1 - count) // (2 * count)
    return count, weight.shape[3], width, max(2, 1 << (count - 1).bit_length()), bits, -(-count // (64 // bits))


def _weight_strides(weight: Tensor) -> tuple[int, int, int]:
    """Of output channels, input channels and taps; `_weight_format` has made sure that taps have one."""
    return weight.stride(0), weight.stride(1), weight.stride(3 if weight.shape[3] > 1 else 2)


def _weight_format(weight: Tensor, pixels: int) -> torch.memory_format | None:
    """The format that the weight is copied to before a pass over so many pixels, or None where it is read as it is.

    Kernels want one stride for all taps. And tiles are read along the input channels: where those are not adjacent, each
    load is of one element and none is asynchronous, so that it pays to bring them together once the pass is long enough
    (vendors' libraries do so, too). The copy is of the plain weight, and of no SW.
    """
    height, width = weight.shape[2:]
    one_stride = height == 1 or width == 1 or weight.stride(2) == width * weight.stride(3)
    scattered = weight.stride(1) != 1 and weight.shape[1] > 1
    if not one_stride or (scattered and pixels * weight.numel() >= _REPACKED_FROM):
        return torch.channels_last
    return None


def _gain_kind(gain: Tensor | None) -> int:
    return 0 if gain is None else 1 if gain.numel() == 1 else 2


def _precision(x: Tensor) -> str:
    cudnn: Any = torch.backends.cudnn  # its settings are not all known to type checkers
    return fp32_precision(cudnn.conv.fp32_precision) if x.dtype == torch.float32 else "ieee"


def _in(form: torch.memory_format | None, tensor: Tensor) -> Tensor:
    return tensor if form is None else tensor.contiguous(memory_format=form)


def _image_format(image: Tensor) -> torch.memory_format | None:
    """Tiles are read along the channels. An image of another layout is copied, as vendors' libraries do."""
    return None if image.stride(1) == 1 else torch.channels_last


class _ForwardPlan(NamedTuple):
    """What a forward of one problem comes down to: formats that tensors are copied to first, and the launch."""

    y_size: tuple[int, ...]
    y_strides: tuple[int, ...]
    x_format: torch.memory_format | None
    weight_format: torch.memory_format | None
    launch: Planned | None  # None where y has no elements


def _fwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, key: Tensor, thresholds: Tensor, taps: Tensor,
    taps_t: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, shadows: int,
    noise: int, amount: float,
) -> Tensor:  # fmt: skip
    """x (N, C, H, W), weight (O, C / groups, kh, kw), bias (O,), gain (), (1,) or (O,) -> (N, O, H_out, W_out)."""
    problem = (
        x.shape, x.stride(), x.dtype, x.device, weight.shape, weight.stride(), bias is None, meta_of(gain), taps.shape,
        *stride, *padding, *dilation, groups, shadows, noise, _precision(x),
    )  # fmt: skip
    bias, gain = dense(bias), dense(gain)
    plan = _FORWARD_PLANS.get(problem)
    if plan is None:
        rest = (stride, padding, dilation, groups, shadows, noise)
        plan = keep(_FORWARD_PLANS, problem, _plan_fwd(x, weight, bias, gain, key, thresholds, taps, *rest))
    y = x.new_empty_strided(plan.y_size, plan.y_strides)
    if plan.launch is not None:
        x, weight = _in(plan.x_format, x), _in(plan.weight_format, weight)
        plan.launch((x, weight, bias, gain, y, key, thresholds, taps), noise_numbers(noise, amount))
    return y


def _plan_fwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, key: Tensor, thresholds: Tensor, taps: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, shadows: int, noise: int,
) -> _ForwardPlan:  # fmt: skip
    size = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    y = torch.empty(
        (x.shape[0], weight.shape[0], *size), dtype=x.dtype, device=x.device, memory_format=memory_format(x, weight)
    )
    if y.numel() == 0:
        return _ForwardPlan(y.shape, y.stride(), None, None, None)
    formats = _image_format(x), _weight_format(weight, y.shape[0] * size[0] * size[1])
    x, weight = _in(formats[0], x), _in(formats[1], weight)
    pixels, channels = x.shape[0] // shadows * size[0] * size[1], weight.shape[0] // groups

    def programs(meta):
        return groups * shadows * -(-pixels // meta["BM"]) * -(-channels // meta["BN"])

    rest = (stride, padding, dilation, groups, shadows, noise)
    numbers = forward_numbers(x, weight, bias, gain, y, thresholds, taps, *rest)
    launch = FORWARD[x.element_size()].plan((x, weight, bias, gain, y, key, thresholds, taps), numbers, programs)
    return _ForwardPlan(y.shape, y.stride(), *formats, launch)


class _WeightPlan(NamedTuple):
    """The launch of a weight gradient, and what it takes besides its results."""

    launch: Planned
    weight_format: torch.memory_format | None
    sums: int  # lines of the gain's gradient that are to be added up
    parts: int  # elements of scratch
    tiles: int  # counters of arrivals


class _BackwardPlan(NamedTuple):
    """What a backward of one problem comes down to. A launch is None where its gradient is not asked for, or has no elements."""

    dx_strides: tuple[int, ...]
    dweight_strides: tuple[int, ...]
    dy_format: torch.memory_format | None
    x_format: torch.memory_format | None
    weight_format: torch.memory_format | None  # of the data gradient
    data: Planned | None
    weight: _WeightPlan | None


def _bwd(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, key: Tensor, thresholds: Tensor, taps: Tensor,
    taps_t: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, shadows: int,
    noise: int, amount: float, mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, weight, bias and gain where `mask` asks for them; empty tensors elsewhere."""
    needs_x, needs_weight, needs_bias, needs_gain = mask
    problem = (
        dy.stride(), x.shape, x.stride(), x.dtype, x.device, weight.shape, weight.stride(), meta_of(gain), taps.shape,
        taps_t.shape, *stride, *padding, *dilation, groups, shadows, noise, _precision(x), needs_x, needs_weight,
        needs_gain,
    )  # fmt: skip
    dense_gain = dense(gain)
    plan = _BACKWARD_PLANS.get(problem)
    if plan is None:
        tensors = (dy, x, weight, dense_gain, key, thresholds, taps, taps_t)
        rest = (stride, padding, dilation, groups, shadows, noise)
        plan = keep(_BACKWARD_PLANS, problem, _plan_bwd(*tensors, *rest, needs_x, needs_weight, needs_gain))
    amounts = noise_numbers(noise, amount)
    dbias = dy.sum((0, 2, 3)) if needs_bias else x.new_empty(0)
    if plan.data is not None or plan.weight is not None:
        dy = _in(plan.dy_format, dy)
    dx = x.new_empty_strided(x.shape, plan.dx_strides) if needs_x else x.new_empty(0)
    if plan.data is not None:
        read = _in(plan.weight_format, weight)
        plan.data((dy, read, dense_gain, dx, key, thresholds, taps), amounts)
    dweight = weight.new_empty_strided(weight.shape, plan.dweight_strides) if needs_weight else None
    dgain = None
    if plan.weight is not None:
        dgain = _bwd_weight(
            plan.weight, dy, _in(plan.x_format, x), weight, dense_gain, dweight, key, thresholds, taps_t, amounts
        )
    elif needs_gain and gain is not None:
        dgain = torch.zeros_like(gain)
    if dgain is not None and gain is not None:
        dgain = dgain.reshape(gain.shape).to(gain.dtype)
    return dx, x.new_empty(0) if dweight is None else dweight, dbias, x.new_empty(0) if dgain is None else dgain


def _plan_bwd(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, key: Tensor, thresholds: Tensor, taps: Tensor,
    taps_t: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, shadows: int,
    noise: int, needs_x: bool, needs_weight: bool, needs_gain: bool,
) -> _BackwardPlan:  # fmt: skip
    form = memory_format(x, weight)
    dx, dweight = (torch.empty_like(t, memory_format=form) for t in (x, weight))
    dy_format, x_format = _image_format(dy), _image_format(x)
    weight_format = _weight_format(weight, dy.shape[0] * dy.shape[2] * dy.shape[3])
    rest: tuple[Any, ...] = (stride, padding, dilation, groups, shadows, noise)
    dy, data, weight_plan = _in(dy_format, dy), None, None
    if needs_x and dx.numel():
        tensors: tuple[Any, ...] = (dy, _in(weight_format, weight), gain, dx, key, thresholds, taps)
        pixels = dx.shape[0] // shadows * -(-dx.shape[2] // stride[0]) * -(-dx.shape[3] // stride[1])

        def programs(meta):
            tiles = shadows * -(-pixels // meta["BM"]) * -(-weight.shape[1] // meta["BN"])
            return groups * stride[0] * stride[1] * tiles

        numbers = bwd_data_numbers(dy, tensors[1], gain, dx, thresholds, taps, *rest)
        data = BWD_DATA[x.element_size()].plan(tensors, numbers, programs)
    if (needs_weight or needs_gain) and weight.numel():
        weight_plan = _plan_bwd_weight(
            dy,
            _in(x_format, x),
            weight,
            gain,
            dweight if needs_weight else None,
            needs_gain,
            key,
            thresholds,
            taps_t,
            rest,
        )
    return _BackwardPlan(dx.stride(), dweight.stride(), dy_format, x_format, weight_format, data, weight_plan)


def _plan_bwd_weight(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, dweight: Tensor | None, needs_gain: bool, key: Tensor,
    thresholds: Tensor, taps_t: Tensor, rest: tuple[Any, ...],
) -> _WeightPlan:  # fmt: skip
    stride, padding, dilation, groups, shadows, noise = rest
    tuned, target = BWD_WEIGHT[x.element_size()], programs_wanted(x.device)
    pixels = dy.shape[0] // shadows * dy.shape[2] * dy.shape[3]
    weight_format = _weight_format(weight, 0)  # of PW it reads one tile at the end
    weight = _in(weight_format, weight)
    taps = weight.shape[2] * weight.shape[3]

    def cut(meta):
        """(parts of the pixels, tiles of the weight), as the kernel has them."""
        tiles = -(-(weight.shape[0] // groups) // meta["BO"]) * -(-weight.shape[1] // meta["BI"]) * taps * groups
        return splits_of(tiles, -(-pixels // meta["BP"]), target), tiles

    def programs(meta):
        splits, tiles = cut(meta)
        return splits * tiles

    def needs(meta):
        """Lines for the gain's gradient, elements of scratch, counters."""
        splits, tiles = cut(meta)
        sums = -(-weight.shape[1] // meta["BI"]) * taps if needs_gain else 0
        return (sums, splits * tiles * meta["BO"] * meta["BI"], tiles) if splits > 1 else (sums, 0, 0)

    most = (max(column) for column in zip(*(needs(config.kwargs) for config in tuned.configs), strict=True))
    scratch = _weight_scratch(x, weight.shape[0], *most)
    tensors: tuple[Any, ...] = (dy, x, weight, gain, dweight, *scratch, key, thresholds, taps_t)
    numbers = bwd_weight_numbers(
        dy,
        x,
        weight,
        gain,
        dweight,
        scratch[0],
        thresholds,
        taps_t,
        stride,
        padding,
        dilation,
        groups,
        shadows,
        noise,
        target,
    )
    launch = tuned.plan(tensors, numbers, programs)
    return _WeightPlan(launch, weight_format, *needs(launch.config.kwargs))


def _weight_scratch(x: Tensor, channels: int, sums: int, parts: int, tiles: int) -> tuple[Tensor | None, ...]:
    """dgain (sums, channels), parts, arrived as the kernel takes them.

    The counters are zeroed at each call. Kept ones would save a fill, but could lie in the memory of a CUDA graph that
    was recorded around the call, and be gone with it.
    """
    return (
        x.new_empty((sums, channels), dtype=torch.float32) if sums else None,
        x.new_empty(parts, dtype=torch.float32) if parts else None,
        x.new_zeros(tiles, dtype=torch.int32) if parts else None,
    )


def _bwd_weight(
    plan: _WeightPlan, dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, dweight: Tensor | None, key: Tensor,
    thresholds: Tensor, taps_t: Tensor, amounts: tuple[float, int],
) -> Tensor | None:  # fmt: skip
    """Fills dweight where it is a tensor. Returns dgain in fp32, (O,) or (), if the plan has it."""
    scratch = _weight_scratch(x, weight.shape[0], plan.sums, plan.parts, plan.tiles)
    weight = _in(plan.weight_format, weight)
    plan.launch((dy, x, weight, gain, dweight, *scratch, key, thresholds, taps_t), amounts)
    if scratch[0] is None or gain is None:
        return None
    return scratch[0].sum() if gain.numel() == 1 else scratch[0].sum(0)


if not _MISSING:
    for _device in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
        implement("shadow_conv2d", "triton", _fwd, _device)
        implement("shadow_conv2d_bwd", "triton", _bwd, _device)
