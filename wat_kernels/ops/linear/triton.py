"""The Triton backend: grid, noise and product in one launch a pass. This file is what runs on the host.

The kernels are in `triton_kernels.py`; this module can be imported without Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wat_kernels.dispatch import Call
from wat_kernels.qualified import qualified
from wat_kernels.torch_library import implement

try:
    from wat_kernels.ops.linear.triton_configs import ROW_CONFIGS, WEIGHT_CONFIGS
    from wat_kernels.ops.linear.triton_kernels import (
        linear_bwd_data_kernel,
        linear_bwd_weight_kernel,
        linear_fwd_kernel,
    )
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
    """A grid that moves nothing in the place of a kernel's own: what tuning measures with, whatever this launch draws."""
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
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, y: Tensor, thresholds: Tensor | None,
    grid: Tensor | None, shadows: int, noise: int,
) -> tuple:  # fmt: skip
    """What `linear_fwd_kernel` takes after the noise's scale and cut and a configuration does not set. Shapes as in `_fwd`."""
    return (
        _rows(thresholds), shadows, x.shape[0] // shadows, weight.shape[1], weight.shape[0], *x.stride(),
        *weight.stride(), *y.stride(), grid is not None, bias is not None, _gain_kind(gain), noise,
        weight.shape[1] % 8 == 0, is_wide(x, weight, y), _precision(x),
    )  # fmt: skip


def bwd_data_numbers(
    dy: Tensor, weight: Tensor, gain: Tensor | None, dx: Tensor, thresholds: Tensor | None, grid: Tensor | None,
    shadows: int, noise: int,
) -> tuple:  # fmt: skip
    """The same for `linear_bwd_data_kernel`."""
    return (
        _rows(thresholds), shadows, dx.shape[0] // shadows, weight.shape[1], weight.shape[0], *dy.stride(),
        *weight.stride(), *dx.stride(), grid is not None, _gain_kind(gain), noise, weight.shape[1] % 8 == 0,
        is_wide(dy, weight, dx), _precision(dy),
    )  # fmt: skip


def bwd_weight_numbers(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, dweight: Tensor | None, dgain: Tensor | None,
    thresholds: Tensor | None, grid: Tensor | None, shadows: int, noise: int, programs: int,
) -> tuple:  # fmt: skip
    """The same for `linear_bwd_weight_kernel`."""
    written = weight if dweight is None else dweight
    return (
        _rows(thresholds), shadows, x.shape[0] // shadows, weight.shape[1], weight.shape[0], *dy.stride(),
        *x.stride(), *weight.stride(), *written.stride(), programs, grid is not None, dweight is not None,
        dgain is not None, _gain_kind(gain), noise, weight.shape[1] % 8 == 0, is_wide(dy, x, weight), _precision(x),
    )  # fmt: skip


def _rows(thresholds: Tensor | None) -> int:
    return 0 if thresholds is None else len(thresholds)


def _gain_kind(gain: Tensor | None) -> int:
    return 0 if gain is None else 1 if gain.numel() == 1 else 2


def _precision(x: Tensor) -> str:
    return fp32_precision(torch.backends.cuda.matmul.fp32_precision) if x.dtype == torch.float32 else "ieee"


def _fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    key: Tensor,
    grid_thresholds: Tensor | None,
    grid: Tensor | None,
    shadows: int,
    noise: int,
    amount: float,
) -> Tensor:
    """x (rows, in), weight (out, in), bias (out,), gain (), (1,) or (out,) -> (rows, out)."""
    y = x.new_empty(x.shape[0], weight.shape[0])
    if y.numel() == 0:
        return y
    problem = (
        x.shape, x.stride(), x.dtype, x.device, weight.shape, weight.stride(), bias is None, meta_of(gain),
        _rows(grid_thresholds), shadows, noise, _precision(x),
    )  # fmt: skip
    tensors: tuple[Any, ...] = (x, weight, dense(bias), dense(gain), y, key, grid_thresholds, grid)
    launch = _FORWARD_PLANS.get(problem)
    if launch is None:
        numbers = forward_numbers(x, weight, bias, gain, y, grid_thresholds, grid, shadows, noise)
        planned = FORWARD[x.element_size()].plan(tensors, numbers, _row_programs(y, shadows))
        launch = keep(_FORWARD_PLANS, problem, planned)
    launch(tensors, noise_numbers(noise, amount))
    return y


def _row_programs(out: Tensor, shadows: int) -> Callable[[dict], int]:
    """How many (BM, BN) tiles `out` (rows, features) has."""

    def programs(meta):
        return shadows * -(-(out.shape[0] // shadows) // meta["BM"]) * -(-out.shape[1] // meta["BN"])

    return programs


class _WeightPlan(NamedTuple):
    """The launch of a weight gradient, and what it takes besides its results."""

    launch: Planned
    sums: int  # lines of the gain's gradient that are to be added up
    parts: int  # elements of scratch
    tiles: int  # counters of arrivals


class _BackwardPlan(NamedTuple):
    """The launches of a backward; None where a gradient is not asked for, or has no elements."""

    data: Planned | None
    weight: _WeightPlan | None


def _bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    gain: Tensor | None,
    key: Tensor,
    grid_thresholds: Tensor | None,
    grid: Tensor | None,
    shadows: int,
    noise: int,
    amount: float,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight, bias and gain where `mask` asks for them; empty tensors elsewhere."""
    needs_x, needs_weight, needs_bias, needs_gain = mask
    problem = (
        dy.stride(), x.shape, x.stride(), x.dtype, x.device, weight.shape, weight.stride(), meta_of(gain),
        _rows(grid_thresholds), shadows, noise, _precision(x), needs_x, needs_weight, needs_gain,
    )  # fmt: skip
    dense_gain, amounts = dense(gain), noise_numbers(noise, amount)
    dx = x.new_empty(x.shape if needs_x else 0)
    dweight = torch.empty_like(weight) if needs_weight else None
    plan = _BACKWARD_PLANS.get(problem)
    if plan is None:
        given_dx = dx if needs_x else None
        draw = (key, grid_thresholds, grid, shadows, noise)
        made = _plan_bwd(dy, x, weight, dense_gain, given_dx, dweight, needs_gain, *draw)
        plan = keep(_BACKWARD_PLANS, problem, made)
    if plan.data is not None:
        plan.data((dy, weight, dense_gain, dx, key, grid_thresholds, grid), amounts)
    dgain = None
    if plan.weight is not None:
        scratch = _weight_scratch(x, len(weight), plan.weight.sums, plan.weight.parts, plan.weight.tiles, grid)
        tensors = (dy, x, weight, dense_gain, dweight, *scratch, key, grid_thresholds, grid)
        plan.weight.launch(tensors, amounts)
        if scratch[0] is not None and gain is not None:
            dgain = scratch[0].sum() if gain.numel() == 1 else scratch[0].sum(0)
    elif needs_gain and gain is not None:
        dgain = torch.zeros_like(gain)
    if dgain is not None and gain is not None:
        dgain = dgain.reshape(gain.shape).to(gain.dtype)
    return (
        dx,
        x.new_empty(0) if dweight is None else dweight,
        dy.sum(0) if needs_bias else x.new_empty(0),
        x.new_empty(0) if dgain is None else dgain,
    )


def _plan_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    gain: Tensor | None,
    dx: Tensor | None,
    dweight: Tensor | None,
    needs_gain: bool,
    key: Tensor,
    grid_thresholds: Tensor | None,
    grid: Tensor | None,
    shadows: int,
    noise: int,
) -> _BackwardPlan:
    data = weight_plan = None
    if dx is not None and dx.numel():
        tensors: tuple[Any, ...] = (dy, weight, gain, dx, key, grid_thresholds, grid)
        numbers = bwd_data_numbers(dy, weight, gain, dx, grid_thresholds, grid, shadows, noise)
        data = BWD_DATA[x.element_size()].plan(tensors, numbers, _row_programs(dx, shadows))
    if (dweight is not None or needs_gain) and weight.numel():
        tensors = (dy, x, weight, gain, dweight, needs_gain, key, grid_thresholds, grid)
        weight_plan = _plan_bwd_weight(*tensors, shadows, noise)
    return _BackwardPlan(data, weight_plan)


def _plan_bwd_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    gain: Tensor | None,
    dweight: Tensor | None,
    needs_gain: bool,
    key: Tensor,
    grid_thresholds: Tensor | None,
    grid: Tensor | None,
    shadows: int,
    noise: int,
) -> _WeightPlan:
    tuned, target = BWD_WEIGHT[x.element_size()], programs_wanted(x.device)
    chunk = x.shape[0] // shadows

    def cut(meta):
        """(parts of the rows, tiles of the weight), as the kernel has them."""
        tiles = -(-weight.shape[0] // meta["BO"]) * -(-weight.shape[1] // meta["BI"])
        return splits_of(tiles, -(-chunk // meta["BP"]), target), tiles

    def programs(meta):
        splits, tiles = cut(meta)
        return splits * tiles

    def needs(meta):
        """Lines for the gain's gradient, elements of scratch, counters."""
        splits, tiles = cut(meta)
        sums = splits * (1 if grid is None else shadows) * -(-weight.shape[1] // meta["BI"]) if needs_gain else 0
        return (sums, splits * tiles * meta["BO"] * meta["BI"], tiles) if splits > 1 else (sums, 0, 0)

    most = (max(column) for column in zip(*(needs(config.kwargs) for config in tuned.configs), strict=True))
    sums, parts, tiles = most
    scratch = _weight_scratch(x, len(weight), sums, parts, tiles, grid)
    tensors: tuple[Any, ...] = (dy, x, weight, gain, dweight, *scratch, key, grid_thresholds, grid)
    numbers = bwd_weight_numbers(
        dy, x, weight, gain, dweight, scratch[0], grid_thresholds, grid, shadows, noise, target
    )
    launch = tuned.plan(tensors, numbers, programs)
    return _WeightPlan(launch, *needs(launch.config.kwargs))


def _weight_scratch(
    x: Tensor, features: int, sums: int, parts: int, tiles: int, grid: Tensor | None
) -> tuple[Tensor | None, ...]:
    """dgain (sums, features), parts, arrived as the kernel takes them.

    The counters are zeroed at each call. Kept ones would save a fill, but could lie in the memory of a CUDA graph that
    was recorded around the call, and be gone with it. A moved matrix leaves some of the sums unwritten.
    """
    new_sums = x.new_empty if grid is None else x.new_zeros
    return (
        new_sums((sums, features), dtype=torch.float32) if sums else None,
        x.new_empty(parts, dtype=torch.float32) if parts else None,
        x.new_zeros(tiles, dtype=torch.int32) if parts else None,
    )


if not _MISSING:
    for _device in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
        implement("shadow_linear", "triton", _fwd, _device)
        implement("shadow_linear_bwd", "triton", _bwd, _device)
