"""The Triton backend: grid, noise and product in one launch a pass. This file is what runs on the host.

The kernels are in `triton_kernels.py`; this module can be imported without Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wat_kernels.dispatch import Call
from wat_kernels.ops.linear.schema import Linear
from wat_kernels.qualified import qualified
from wat_kernels.signature import Draw, Gradients, gain_gradient, gain_kind, gradients
from wat_kernels.torch_library import implement_shadow_op

try:
    from wat_kernels.ops.linear.triton_configs import ROW_CONFIGS, WEIGHT_CONFIGS
    from wat_kernels.ops.linear.triton_kernels import (
        linear_bwd_data_kernel,
        linear_bwd_weight_kernel,
        linear_fwd_kernel,
    )
    from wat_kernels.triton_launch import (
        INTERPRETED,
        Cut,
        Planned,
        Tuned,
        WeightPlan,
        dense,
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
    return not reason, reason


def worthwhile(call: Call) -> tuple[bool, str]:
    """Once this GPU has been seen to compute right with it."""
    return qualified("shadow_linear", "triton", call)


_PROBLEM = ("shadows", "chunk", "in_features", "out_features", "GRID", "NOISE", "PACKED", "PRECISION")


def _row_fits(columns: str) -> Callable[[dict], bool]:
    """Tiles at most twice as wide and tall as what they cover; not the largest where a tile of noise needs registers."""

    def fits(a: dict) -> bool:
        if (a["NOISE"] or a["GRID"]) and a["BM"] * a["BN"] > 128 * 128:
            return False
        if a["GRID"] and a["BM"] > 128:
            return False
        return a["BN"] <= max(64, 2 * a[columns]) and a["BM"] <= max(64, 2 * a["chunk"])

    return fits


def _weight_fits(a: dict) -> bool:
    return a["BO"] <= max(64, 2 * a["out_features"]) and a["BI"] <= max(64, 2 * a["in_features"])


def _in_place(a: dict) -> dict:
    """A grid that moves nothing in place of a kernel's own: what tuning measures with, whatever this launch draws."""
    if a["grid"] is None:
        return {}
    device = a["grid"].device
    still = torch.zeros(1, 4, dtype=torch.int64, device=device)
    return {"thresholds": torch.full((1,), 2**32, device=device), "grid": still, "rows": 1}


if not _MISSING:
    FORWARD = {
        b: Tuned(linear_fwd_kernel, c, _PROBLEM, _row_fits("out_features"), _in_place) for b, c in ROW_CONFIGS.items()
    }
    BWD_DATA = {
        b: Tuned(linear_bwd_data_kernel, c, _PROBLEM, _row_fits("in_features"), _in_place)
        for b, c in ROW_CONFIGS.items()
    }
    BWD_WEIGHT = {
        b: Tuned(linear_bwd_weight_kernel, c, _PROBLEM, _weight_fits, _in_place) for b, c in WEIGHT_CONFIGS.items()
    }
    _FORWARD_PLANS, _BACKWARD_PLANS = plans(), plans()


def forward_numbers(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, y: Tensor, draw: Draw
) -> tuple:
    """What `linear_fwd_kernel` takes after the noise's scale and cut and a configuration does not set. Shapes as in `forward`."""
    return (
        *_sizes(x, weight, draw), *x.stride(), *weight.stride(), *y.stride(), draw.table is not None, bias is not None,
        *_kinds(gain, weight, draw), is_wide(x, weight, y), _precision(x),
    )  # fmt: skip


def bwd_data_numbers(dy: Tensor, weight: Tensor, gain: Tensor | None, dx: Tensor, draw: Draw) -> tuple:
    """The same for `linear_bwd_data_kernel`."""
    return (
        *_sizes(dx, weight, draw), *dy.stride(), *weight.stride(), *dx.stride(), draw.table is not None,
        *_kinds(gain, weight, draw), is_wide(dy, weight, dx), _precision(dy),
    )  # fmt: skip


def bwd_weight_numbers(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, dweight: Tensor | None, dgain: Tensor | None, draw: Draw,
    programs: int,
) -> tuple:  # fmt: skip
    """The same for `linear_bwd_weight_kernel`."""
    written = weight if dweight is None else dweight
    return (
        *_sizes(x, weight, draw), *dy.stride(), *x.stride(), *weight.stride(), *written.stride(), programs,
        draw.table is not None, dweight is not None, dgain is not None, *_kinds(gain, weight, draw),
        is_wide(dy, x, weight), _precision(x),
    )  # fmt: skip


def _sizes(x: Tensor, weight: Tensor, draw: Draw) -> tuple[int, ...]:
    """rows (of the grid), shadows, chunk, in_features, out_features of the kernels. x: or dx"""
    return _rows(draw), draw.shadows, x.shape[0] // draw.shadows, weight.shape[1], weight.shape[0]


def _kinds(gain: Tensor | None, weight: Tensor, draw: Draw) -> tuple[int, int, bool]:
    """GAIN, NOISE, PACKED of the kernels."""
    return gain_kind(gain), draw.noise, weight.shape[1] % 8 == 0


def _rows(draw: Draw) -> int:
    return 0 if draw.table is None else len(draw.table.thresholds)


def _precision(x: Tensor) -> str:
    return fp32_precision(torch.backends.cuda.matmul.fp32_precision) if x.dtype == torch.float32 else "ieee"


def _addresses(draw: Draw) -> tuple[Tensor | None, ...]:
    """key, thresholds, grid of the kernels."""
    return (draw.key, None, None) if draw.table is None else (draw.key, *draw.table)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, draw: Draw, layout: Linear) -> Tensor:
    """x (rows, in), weight (out, in), bias (out,), gain (), (1,) or (out,) -> (rows, out)."""
    y = x.new_empty(x.shape[0], weight.shape[0])
    if y.numel() == 0:
        return y
    problem = (
        x.shape, x.stride(), x.dtype, x.device, weight.shape, weight.stride(), bias is None, meta_of(gain), _rows(draw),
        draw.shadows, draw.noise, _precision(x),
    )  # fmt: skip
    bias, gain = dense(bias), dense(gain)
    tensors = (x, weight, bias, gain, y, *_addresses(draw))
    launch = _FORWARD_PLANS.get(problem)
    if launch is None:
        numbers = forward_numbers(x, weight, bias, gain, y, draw)
        planned = FORWARD[x.element_size()].plan(tensors, numbers, _row_programs(y, draw.shadows))
        launch = keep(_FORWARD_PLANS, problem, planned)
    launch(tensors, noise_numbers(draw.noise, draw.amount))
    return y


def _row_programs(out: Tensor, shadows: int) -> Callable[[dict], int]:
    """How many (BM, BN) tiles `out` (rows, features) has."""

    def programs(meta):
        return shadows * -(-(out.shape[0] // shadows) // meta["BM"]) * -(-out.shape[1] // meta["BN"])

    return programs


class _BackwardPlan(NamedTuple):
    """The launches of a backward; None where a gradient is not asked for, or has no elements."""

    data: Planned | None
    weight: WeightPlan | None


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, draw: Draw, layout: Linear, mask: Sequence[bool]
) -> Gradients:
    """The gradients of x, weight, bias and gain where `mask` asks for them; empty tensors elsewhere."""
    needs_x, needs_weight, needs_bias, needs_gain = mask
    problem = (
        dy.stride(), x.shape, x.stride(), x.dtype, x.device, weight.shape, weight.stride(), meta_of(gain), _rows(draw),
        draw.shadows, draw.noise, _precision(x), needs_x, needs_weight, needs_gain,
    )  # fmt: skip
    dense_gain, amounts = dense(gain), noise_numbers(draw.noise, draw.amount)
    dx = x.new_empty(x.shape) if needs_x else None
    dweight = torch.empty_like(weight) if needs_weight else None
    plan = _BACKWARD_PLANS.get(problem)
    if plan is None:
        made = _plan_backward(dy, x, weight, dense_gain, dx, dweight, needs_gain, draw)
        plan = keep(_BACKWARD_PLANS, problem, made)
    if plan.data is not None:
        plan.data((dy, weight, dense_gain, dx, *_addresses(draw)), amounts)
    dgain = None
    if plan.weight is not None:
        scratch = plan.weight.scratch.new(x, len(weight), draw.table is not None)
        plan.weight.launch((dy, x, weight, dense_gain, dweight, *scratch, *_addresses(draw)), amounts)
        if scratch[0] is not None and gain is not None:
            dgain = gain_gradient(scratch[0], gain)
    elif needs_gain and gain is not None:
        dgain = torch.zeros_like(gain)
    return gradients(x, dx, dweight, dy.sum(0) if needs_bias else None, dgain)


def _plan_backward(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, dx: Tensor | None, dweight: Tensor | None,
    needs_gain: bool, draw: Draw,
) -> _BackwardPlan:  # fmt: skip
    data = weight_plan = None
    if dx is not None and dx.numel():
        tensors = (dy, weight, gain, dx, *_addresses(draw))
        numbers = bwd_data_numbers(dy, weight, gain, dx, draw)
        data = BWD_DATA[x.element_size()].plan(tensors, numbers, _row_programs(dx, draw.shadows))
    if (dweight is not None or needs_gain) and weight.numel():
        weight_plan = _plan_weight(dy, x, weight, gain, dweight, needs_gain, draw)
    return _BackwardPlan(data, weight_plan)


def _plan_weight(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, dweight: Tensor | None, needs_gain: bool, draw: Draw
) -> WeightPlan:
    tuned, target = BWD_WEIGHT[x.element_size()], programs_wanted(x.device)
    chunk, moved = x.shape[0] // draw.shadows, draw.table is not None

    def cut(meta):
        """As the kernel has it."""
        tiles = -(-weight.shape[0] // meta["BO"]) * -(-weight.shape[1] // meta["BI"])
        return Cut(tiles, -(-chunk // meta["BP"]), meta["BO"] * meta["BI"])

    def programs(meta):
        return cut(meta).splits(target) * cut(meta).tiles

    def scratch_of(meta):
        lines = cut(meta).splits(target) * (draw.shadows if moved else 1) * -(-weight.shape[1] // meta["BI"])
        return cut(meta).scratch(lines if needs_gain else 0, target)

    # a moved matrix leaves some of the sums unwritten
    scratch = most_scratch([scratch_of(config.kwargs) for config in tuned.configs]).new(x, len(weight), moved)
    tensors = (dy, x, weight, gain, dweight, *scratch, *_addresses(draw))
    launch = tuned.plan(tensors, bwd_weight_numbers(dy, x, weight, gain, dweight, scratch[0], draw, target), programs)
    return WeightPlan(launch, scratch_of(launch.config.kwargs))


if not _MISSING:
    for _device in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
        implement_shadow_op("shadow_linear", "triton", forward, backward, _device)
