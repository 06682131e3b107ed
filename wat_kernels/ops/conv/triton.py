"""The Triton backend: draw, shadow and convolution in one launch a pass. This file is what runs on the host.

The kernels are in `triton_kernels.py` and `triton_bwd_weight.py`, those that move boxes of pixels in `triton_box_kernels.py`
(`triton_boxes.py` says when); this module can be imported without Triton.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wat_kernels.dispatch import Call
from wat_kernels.ops.conv import triton_transposed
from wat_kernels.ops.conv.geometry import Convolution, memory_format, new
from wat_kernels.qualified import qualified
from wat_kernels.signature import Draw, Gradients, gain_gradient, gain_kind, gradients
from wat_kernels.torch_library import implement_shadow_op

try:
    from wat_kernels.ops.conv import triton_boxes
    from wat_kernels.ops.conv.triton_bwd_weight import conv2d_bwd_weight_kernel
    from wat_kernels.ops.conv.triton_configs import IMAGE_CONFIGS, WEIGHT_CONFIGS, all_taps
    from wat_kernels.ops.conv.triton_kernels import conv2d_bwd_data_kernel, conv2d_fwd_kernel
    from wat_kernels.ops.conv.triton_row import MAX_TAPS
    from wat_kernels.triton_launch import (
        INTERPRETED,
        Cut,
        Design,
        Planned,
        Tuned,
        WeightPlan,
        dense,
        fastest,
        fp32_precision,
        is_wide,
        keep,
        meta_of,
        most_scratch,
        noise_numbers,
        plans,
        programs_wanted,
        refusal,
    )

    _MISSING = ""
except ImportError as error:
    _MISSING, INTERPRETED = f"triton cannot be imported ({error})", False


RUNS_ON = "cuda"


def supports(call: Call) -> tuple[bool, str]:
    reason = _MISSING or refusal(call)
    if not reason and math.prod(call.kernel) > MAX_TAPS:
        reason = f"the kernel is {'x'.join(map(str, call.kernel))}; it takes up to {MAX_TAPS} taps"
    if not reason and len(call.kernel) > 2:
        reason = "it takes convolutions of 1 and 2 dimensions"
    return not reason, reason


def worthwhile(call: Call) -> tuple[bool, str]:
    """Once this GPU has been seen to compute right with it."""
    return qualified("shadow_conv", "triton", call)


# Multiply-adds from which a weight whose input channels are not adjacent is copied first. The copy takes 4 us
# on an H200. That a pass of so many multiply-adds takes longer than that without it is a prediction.
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


if not _MISSING:
    FORWARD = {
        b: Tuned(conv2d_fwd_kernel, c, _PROBLEM, _image_fits("out_channels"), all_taps)
        for b, c in IMAGE_CONFIGS.items()
    }
    BWD_DATA = {
        b: Tuned(conv2d_bwd_data_kernel, c, _PROBLEM, _image_fits("in_channels"), all_taps)
        for b, c in IMAGE_CONFIGS.items()
    }
    BWD_WEIGHT = {
        b: Tuned(conv2d_bwd_weight_kernel, c, _PROBLEM, _weight_fits, all_taps) for b, c in WEIGHT_CONFIGS.items()
    }
    _FORWARD_PLANS, _BACKWARD_PLANS, _DATA_PLANS = plans(), plans(), plans()


def forward_numbers(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, y: Tensor, draw: Draw, layout: Convolution
) -> tuple:
    """What `conv2d_fwd_kernel` takes after the noise's scale and cut and a configuration does not set. Shapes as in `forward`."""
    return (
        *_sizes(x, weight, draw, layout), *x.shape[2:], *y.shape[2:], *x.stride(), *_weight_strides(weight), *y.stride(),
        *_steps(layout), *_tap_numbers(weight, draw.table.taps), bias is not None,
        *_kinds(gain, weight, draw), is_wide(x, weight, y), _precision(x),
    )  # fmt: skip


def bwd_data_numbers(
    dy: Tensor, weight: Tensor, gain: Tensor | None, dx: Tensor, draw: Draw, layout: Convolution
) -> tuple:
    """The same for `conv2d_bwd_data_kernel`."""
    return (
        *_sizes(dx, weight, draw, layout), *dx.shape[2:], *dy.shape[2:], *dy.stride(), *_weight_strides(weight),
        *dx.stride(), *_steps(layout), *_tap_numbers(weight, draw.table.taps), *_kinds(gain, weight, draw),
        is_wide(dy, weight, dx), _precision(dy),
    )  # fmt: skip


def bwd_weight_numbers(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, dweight: Tensor | None, dgain: Tensor | None, draw: Draw,
    layout: Convolution, programs: int,
) -> tuple:  # fmt: skip
    """The same for `conv2d_bwd_weight_kernel`."""
    written = _weight_strides(weight if dweight is None else dweight)
    return (
        *_sizes(x, weight, draw, layout), *x.shape[2:], *dy.shape[2:], *dy.stride(), *x.stride(), *_weight_strides(weight),
        *written, *_steps(layout), programs, *_tap_numbers(weight, draw.table.taps_t)[:4], dweight is not None,
        dgain is not None, *_kinds(gain, weight, draw), is_wide(dy, x, weight), _precision(x),
    )  # fmt: skip


def box_numbers(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, out: Tensor, draw: Draw, layout: Convolution,
    backward: bool,
) -> tuple:  # fmt: skip
    """The same for `conv2d_gather_box_kernel`. x: or dx; out: y, or dx"""
    return (
        *_sizes(x, weight, draw, layout), *out.shape[2:], *_steps(layout)[2:], backward,
        *_tap_numbers(weight, draw.table.taps), bias is not None, *_kinds(gain, weight, draw), is_wide(weight),
        _precision(x),
    )  # fmt: skip


def box_weight_numbers(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, dweight: Tensor | None, dgain: Tensor | None, draw: Draw,
    layout: Convolution, programs: int,
) -> tuple:  # fmt: skip
    """The same for `conv2d_bwd_weight_box_kernel`."""
    rows, _, images, groups, in_channels, out_channels = _sizes(x, weight, draw, layout)
    written = _weight_strides(weight if dweight is None else dweight)
    return (
        rows, images, groups, in_channels, out_channels, *dy.shape[2:], *_weight_strides(weight), *written,
        *_steps(layout)[2:], programs, *_tap_numbers(weight, draw.table.taps_t)[:4], dweight is not None,
        dgain is not None, *_kinds(gain, weight, draw), is_wide(weight), _precision(x),
    )  # fmt: skip


def _sizes(x: Tensor, weight: Tensor, draw: Draw, layout: Convolution) -> tuple[int, ...]:
    """rows, shadows, images, groups, in_channels, out_channels of the kernels. x: or dx"""
    return (
        len(draw.table.thresholds), draw.shadows, x.shape[0] // draw.shadows, layout.groups, weight.shape[1],
        weight.shape[0] // layout.groups,
    )  # fmt: skip


def _steps(layout: Convolution) -> tuple[int, ...]:
    """stride_h, stride_w, pad_top, pad_left, dil_h, dil_w of the kernels."""
    return (*layout.stride, layout.padding[0], layout.padding[2], *layout.dilation)


def _kinds(gain: Tensor | None, weight: Tensor, draw: Draw) -> tuple[int, int, bool]:
    """GAIN, NOISE, PACKED of the kernels."""
    return gain_kind(gain), draw.noise, weight.shape[1] % 8 == 0


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


def _precision(x: Tensor) -> str:
    cudnn: Any = torch.backends.cudnn  # its settings are not all known to type checkers
    return fp32_precision(cudnn.conv.fp32_precision) if x.dtype == torch.float32 else "ieee"


def _in(form: torch.memory_format | None, tensor: Tensor) -> Tensor:
    if form is None:
        return tensor
    return (tensor if tensor.ndim == 4 else tensor.unsqueeze(2)).contiguous(memory_format=form)


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


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, draw: Draw, layout: Convolution
) -> Tensor:
    """x (N, C, H, W), weight (O, C / groups, kh, kw), bias (O,), gain (), (1,) or (O,) -> (N, O, H_out, W_out). Or without H and kh."""
    if layout.transposed:
        return triton_transposed.forward(_data_gradient, x, weight, bias, gain, draw, layout)
    key, (thresholds, taps, _), shadows, noise, amount = draw
    problem = (
        x.shape, x.stride(), x.dtype, x.device, weight.shape, weight.stride(), bias is None, meta_of(gain), taps.shape,
        layout, shadows, noise, _precision(x),
    )  # fmt: skip
    bias, gain = dense(bias), dense(gain)
    plan = _FORWARD_PLANS.get(problem)
    if plan is None:
        plan = keep(_FORWARD_PLANS, problem, _plan_forward(x, weight, bias, gain, draw, layout))
    y = x.new_empty_strided(plan.y_size, plan.y_strides)
    if plan.launch is not None:
        x, weight = _in(plan.x_format, x), _in(plan.weight_format, weight)
        plan.launch((x, weight, bias, gain, y, key, thresholds, taps), noise_numbers(noise, amount))
    return y


def _plan_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, draw: Draw, layout: Convolution
) -> _ForwardPlan:
    y = new(x, layout.output_shape(x, weight), memory_format(x, weight))
    if x.ndim == 3:  # the plan of images of height 1; the launch asks tensors for their address alone
        plan = _plan_forward(x.unsqueeze(2), weight.unsqueeze(2), bias, gain, draw, layout.of_images())
        return plan._replace(y_size=y.shape, y_strides=y.stride())
    if y.numel() == 0:
        return _ForwardPlan(y.shape, y.stride(), None, None, None)
    image = y.shape[2] * y.shape[3]
    formats = _image_format(x), _weight_format(weight, y.shape[0] * image)
    x, weight = _in(formats[0], x), _in(formats[1], weight)
    pixels, channels = x.shape[0] // draw.shadows * image, weight.shape[0] // layout.groups

    def programs(meta):
        return layout.groups * draw.shadows * -(-pixels // meta["BM"]) * -(-channels // meta["BN"])

    tensors = (x, weight, bias, gain, y, draw.key, draw.table.thresholds, draw.table.taps)
    numbers = forward_numbers(x, weight, bias, gain, y, draw, layout)
    designs = [Design(FORWARD[x.element_size()], tensors, numbers, programs)]
    if triton_boxes.takes(x, y, weight, draw, layout) and triton_boxes.has_rows(weight):
        sizes = box_numbers(x, weight, bias, gain, y, draw, layout, False)
        designs.insert(0, triton_boxes.gather_design(x, weight, y, bias, gain, draw, sizes, False))
    return _ForwardPlan(y.shape, y.stride(), *formats, fastest(designs)[1])


class _BackwardPlan(NamedTuple):
    """What a backward of one problem comes down to. A launch is None where its gradient is not asked for, or has no elements."""

    dx_strides: tuple[int, ...]
    dweight_strides: tuple[int, ...]
    dy_format: torch.memory_format | None
    x_format: torch.memory_format | None
    weight_format: torch.memory_format | None  # of the data gradient
    data: Planned | None
    data_boxes: bool  # whether `data` moves boxes: that kernel is the forward's, too, and takes a bias
    weight: WeightPlan | None


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, draw: Draw, layout: Convolution, mask: Sequence[bool]
) -> Gradients:
    """The gradients of x, weight, bias and gain where `mask` asks for them; empty tensors elsewhere."""
    if layout.transposed:
        return triton_transposed.backward(forward, backward, dy, x, weight, gain, draw, layout, mask)
    needs_x, needs_weight, needs_bias, needs_gain = mask
    key, (thresholds, taps, taps_t), shadows, noise, amount = draw
    problem = (
        dy.stride(), x.shape, x.stride(), x.dtype, x.device, weight.shape, weight.stride(), meta_of(gain), taps.shape,
        taps_t.shape, layout, shadows, noise, _precision(x), needs_x, needs_weight, needs_gain,
    )  # fmt: skip
    dense_gain = dense(gain)
    plan = _BACKWARD_PLANS.get(problem)
    if plan is None:
        plan = keep(_BACKWARD_PLANS, problem, _plan_backward(dy, x, weight, dense_gain, draw, layout, mask))
    amounts = noise_numbers(noise, amount)
    dbias = dy.sum((0, *range(2, dy.ndim))) if needs_bias else None
    if plan.data is not None or plan.weight is not None:
        dy = _in(plan.dy_format, dy)
    dx = x.new_empty_strided(x.shape, plan.dx_strides) if needs_x else None
    if plan.data is not None:
        bias = (None,) if plan.data_boxes else ()
        read = _in(plan.weight_format, weight)
        plan.data((dy, read, *bias, dense_gain, dx, key, thresholds, taps), amounts)
    dweight = weight.new_empty_strided(weight.shape, plan.dweight_strides) if needs_weight else None
    dgain = None
    if plan.weight is not None:
        scratch = plan.weight.scratch.new(x, len(weight))
        read = _in(plan.weight.weight_format, weight)
        tensors = (dy, _in(plan.x_format, x), read, dense_gain, dweight, *scratch, key, thresholds, taps_t)
        plan.weight.launch(tensors, amounts)
        if scratch[0] is not None and gain is not None:
            dgain = gain_gradient(scratch[0], gain)
    elif needs_gain and gain is not None:
        dgain = torch.zeros_like(gain)
    return gradients(x, dx, dweight, dbias, dgain)


def _plan_backward(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, draw: Draw, layout: Convolution, mask: Sequence[bool]
) -> _BackwardPlan:
    needs_x, needs_weight, _, needs_gain = mask
    form = memory_format(x, weight)
    dx, dweight = (new(t, t.shape, form) for t in (x, weight))
    if x.ndim == 3:  # as in _plan_forward
        dy, x, weight = (t.unsqueeze(2) for t in (dy, x, weight))
        plan = _plan_backward(dy, x, weight, gain, draw, layout.of_images(), mask)
        return plan._replace(dx_strides=dx.stride(), dweight_strides=dweight.stride())
    dy_format, x_format = _image_format(dy), _image_format(x)
    weight_format = _weight_format(weight, dy.shape[0] * dy.shape[2] * dy.shape[3])
    dy, data, boxes, weight_plan = _in(dy_format, dy), None, False, None
    if needs_x and dx.numel():
        data, boxes = _plan_data(dy, _in(weight_format, weight), gain, dx, draw, layout)
    if (needs_weight or needs_gain) and weight.numel():
        written = dweight if needs_weight else None
        weight_plan = _plan_weight(dy, _in(x_format, x), weight, gain, written, needs_gain, draw, layout)
    return _BackwardPlan(dx.stride(), dweight.stride(), dy_format, x_format, weight_format, data, boxes, weight_plan)


def _plan_data(
    dy: Tensor, weight: Tensor, gain: Tensor | None, dx: Tensor, draw: Draw, layout: Convolution
) -> tuple[Planned, bool]:
    (stride_h, stride_w), groups = layout.stride, layout.groups
    pixels = dx.shape[0] // draw.shadows * -(-dx.shape[2] // stride_h) * -(-dx.shape[3] // stride_w)

    def programs(meta):
        tiles = draw.shadows * -(-pixels // meta["BM"]) * -(-weight.shape[1] // meta["BN"])
        return groups * stride_h * stride_w * tiles

    tensors = (dy, weight, gain, dx, draw.key, draw.table.thresholds, draw.table.taps)
    numbers = bwd_data_numbers(dy, weight, gain, dx, draw, layout)
    designs = [Design(BWD_DATA[dy.element_size()], tensors, numbers, programs)]
    if triton_boxes.takes(dx, dy, weight, draw, layout) and triton_boxes.has_rows(weight):
        sizes = box_numbers(dx, weight, None, gain, dx, draw, layout, True)
        designs.insert(0, triton_boxes.gather_design(dy, weight, dx, None, gain, draw, sizes, True))
    design, launch = fastest(designs)
    return launch, design.tuned is triton_boxes.BACKWARD_GATHER


class _DataPlan(NamedTuple):
    """What a data gradient alone comes down to."""

    dy_format: torch.memory_format | None
    weight_format: torch.memory_format | None
    launch: Planned
    boxes: bool  # as `_BackwardPlan.data_boxes`


def _data_gradient(
    dy: Tensor, dx: Tensor, weight: Tensor, gain: Tensor | None, draw: Draw, layout: Convolution
) -> None:
    """Writes the data gradient to dx, which has elements."""
    problem = (
        dy.shape, dy.stride(), dx.shape, dx.stride(), dy.dtype, dy.device, weight.shape, weight.stride(), meta_of(gain),
        draw.table.taps.shape, layout, draw.shadows, draw.noise, _precision(dy),
    )  # fmt: skip
    gain = dense(gain)
    plan = _DATA_PLANS.get(problem)
    if plan is None:
        plan = keep(_DATA_PLANS, problem, _plan_data_alone(dy, dx, weight, gain, draw, layout))
    dy, weight = _in(plan.dy_format, dy), _in(plan.weight_format, weight)
    bias = (None,) if plan.boxes else ()
    tensors = (dy, weight, *bias, gain, dx, draw.key, draw.table.thresholds, draw.table.taps)
    plan.launch(tensors, noise_numbers(draw.noise, draw.amount))


def _plan_data_alone(
    dy: Tensor, dx: Tensor, weight: Tensor, gain: Tensor | None, draw: Draw, layout: Convolution
) -> _DataPlan:
    if dy.ndim == 3:
        dy, dx, weight = (t.unsqueeze(2) for t in (dy, dx, weight))
        layout = layout.of_images()
    formats = _image_format(dy), _weight_format(weight, dy.shape[0] * dy.shape[2] * dy.shape[3])
    return _DataPlan(*formats, *_plan_data(_in(formats[0], dy), _in(formats[1], weight), gain, dx, draw, layout))


def _plan_weight(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, dweight: Tensor | None, needs_gain: bool, draw: Draw,
    layout: Convolution,
) -> WeightPlan:  # fmt: skip
    tuned, target = BWD_WEIGHT[x.element_size()], programs_wanted(x.device)
    pixels = dy.shape[0] // draw.shadows * dy.shape[2] * dy.shape[3]
    weight_format = _weight_format(weight, 0)  # of PW it reads one tile at the end
    weight = _in(weight_format, weight)
    taps, outputs = weight.shape[2] * weight.shape[3], weight.shape[0] // layout.groups

    def cut(meta):
        """As the kernel has it."""
        tiles = -(-outputs // meta["BO"]) * -(-weight.shape[1] // meta["BI"]) * taps * layout.groups
        return Cut(tiles, -(-pixels // meta["BP"]), meta["BO"] * meta["BI"])

    def programs(meta):
        return cut(meta).splits(target) * cut(meta).tiles

    def scratch_of(meta):
        return cut(meta).scratch(-(-weight.shape[1] // meta["BI"]) * taps if needs_gain else 0, target)

    box_scratch = triton_boxes.weight_scratch(weight, layout.groups, target, needs_gain)

    def design(tuned, scratch_of, numbers_of, programs):
        scratch = most_scratch([scratch_of(config.kwargs) for config in tuned.configs]).new(x, len(weight))
        tensors = (dy, x, weight, gain, dweight, *scratch, draw.key, draw.table.thresholds, draw.table.taps_t)
        numbers = numbers_of(dy, x, weight, gain, dweight, scratch[0], draw, layout, target)
        return Design(tuned, tensors, numbers, programs)

    designs = [design(tuned, scratch_of, bwd_weight_numbers, programs)]
    if draw.shadows == 1 and triton_boxes.takes(x, dy, weight, draw, layout):
        box_programs = triton_boxes.weight_programs(weight, layout.groups, target)
        designs.insert(0, design(triton_boxes.WEIGHT, box_scratch, box_weight_numbers, box_programs))
    chosen, launch = fastest(designs)
    scratch_of = box_scratch if chosen.tuned is triton_boxes.WEIGHT else scratch_of
    return WeightPlan(launch, scratch_of(launch.config.kwargs), weight_format)


if not _MISSING:
    for _device in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
        implement_shadow_op("shadow_conv", "triton", forward, backward, _device)
