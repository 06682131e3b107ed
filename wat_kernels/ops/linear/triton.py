"""The Triton backend: grid, noise and product in one launch a pass. This file is what runs on the host.

The kernels are in `triton_kernels.py`; this module can be imported without Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
        b: Tuned(linear_bwd_weight_kernel, c, _PROBLEM, _weight_fits, _in_place, ["dgain"])
        for b, c in WEIGHT_CONFIGS.items()
    }


def forward_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, y: Tensor, key: Tensor,
    thresholds: Tensor | None, grid: Tensor | None, shadows: int, noise: int, amount: float,
) -> tuple:  # fmt: skip
    """Everything that `linear_fwd_kernel` takes and a configuration does not set. Shapes as in `_fwd`."""
    return (
        x, weight, bias, gain, y, key, thresholds, grid, _rows(thresholds), shadows, x.shape[0] // shadows,
        weight.shape[1], weight.shape[0], *x.stride(), *weight.stride(), *y.stride(), *noise_numbers(noise, amount),
        grid is not None, bias is not None, _gain_kind(gain), noise, weight.shape[1] % 8 == 0, is_wide(x, weight, y),
        _precision(x),
    )  # fmt: skip


def bwd_data_arguments(
    dy: Tensor, weight: Tensor, gain: Tensor | None, dx: Tensor, key: Tensor, thresholds: Tensor | None,
    grid: Tensor | None, shadows: int, noise: int, amount: float,
) -> tuple:  # fmt: skip
    """Everything that `linear_bwd_data_kernel` takes and a configuration does not set."""
    return (
        dy, weight, gain, dx, key, thresholds, grid, _rows(thresholds), shadows, dx.shape[0] // shadows,
        weight.shape[1], weight.shape[0], *dy.stride(), *weight.stride(), *dx.stride(), *noise_numbers(noise, amount),
        grid is not None, _gain_kind(gain), noise, weight.shape[1] % 8 == 0, is_wide(dy, weight, dx), _precision(dy),
    )  # fmt: skip


def bwd_weight_arguments(
    dy: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, dweight: Tensor | None, dgain: Tensor | None,
    parts: Tensor | None, arrived: Tensor | None, key: Tensor, thresholds: Tensor | None, grid: Tensor | None,
    shadows: int, noise: int, amount: float, programs: int,
) -> tuple:  # fmt: skip
    """Everything that `linear_bwd_weight_kernel` takes and a configuration does not set."""
    written = weight if dweight is None else dweight
    return (
        dy, x, weight, gain, dweight, dgain, parts, arrived, key, thresholds, grid, _rows(thresholds), shadows,
        x.shape[0] // shadows, weight.shape[1], weight.shape[0], *dy.stride(), *x.stride(), *weight.stride(),
        *written.stride(), *noise_numbers(noise, amount), programs, grid is not None, dweight is not None,
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
    arguments = forward_arguments(x, weight, bias, gain, y, key, grid_thresholds, grid, shadows, noise, amount)
    FORWARD[x.element_size()].launch(_row_programs(y, shadows), arguments)
    return y


def _row_programs(out: Tensor, shadows: int) -> Callable[[dict], int]:
    """How many (BM, BN) tiles `out` (rows, features) has."""

    def programs(meta):
        return shadows * -(-(out.shape[0] // shadows) // meta["BM"]) * -(-out.shape[1] // meta["BN"])

    return programs


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
    draw = (key, grid_thresholds, grid, shadows, noise, amount)
    dx = x.new_empty(x.shape) if needs_x else x.new_empty(0)
    if dx.numel():
        arguments = bwd_data_arguments(dy, weight, gain, dx, *draw)
        BWD_DATA[x.element_size()].launch(_row_programs(dx, shadows), arguments)
    dweight = torch.empty_like(weight) if needs_weight else None
    dgain = _bwd_weight(dy, x, weight, gain, dweight, needs_gain, draw) if needs_weight or needs_gain else None
    return (
        dx,
        x.new_empty(0) if dweight is None else dweight,
        dy.sum(0) if needs_bias else x.new_empty(0),
        x.new_empty(0) if dgain is None else dgain,
    )


def _bwd_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    gain: Tensor | None,
    dweight: Tensor | None,
    needs_gain: bool,
    draw: tuple[Any, ...],
) -> Tensor | None:
    """Fills dweight where it is a tensor. Returns dgain, shaped as the gain, if asked."""
    _, _, grid, shadows, _, _ = draw
    if weight.numel() == 0:
        return torch.zeros_like(gain) if needs_gain and gain is not None else None
    tuned, target = BWD_WEIGHT[x.element_size()], programs_wanted(x.device)
    chunk = x.shape[0] // shadows

    def cut(meta):
        tiles = -(-weight.shape[0] // meta["BO"]) * -(-weight.shape[1] // meta["BI"])
        return splits_of(tiles, -(-chunk // meta["BP"]), target), tiles

    parts, sums = 0, 0  # scratch for the configuration that needs most
    for config in tuned.configs:
        splits, tiles = cut(config.kwargs)
        if splits > 1:
            parts = max(parts, splits * tiles * config.kwargs["BO"] * config.kwargs["BI"])
        sums = max(sums, splits * (1 if grid is None else shadows) * -(-weight.shape[1] // config.kwargs["BI"]))
    per_tile = torch.zeros(sums, len(weight), dtype=torch.float32, device=x.device) if needs_gain else None
    arguments = bwd_weight_arguments(
        dy, x, weight, gain, dweight, per_tile,
        torch.empty(parts, dtype=torch.float32, device=x.device) if parts else None,
        arrivals(x.device) if parts else None, *(*draw, target),
    )  # fmt: skip

    def programs(meta):
        splits, tiles = cut(meta)
        return splits * tiles

    tuned.launch(programs, arguments)
    if per_tile is None or gain is None:
        return None
    per_output = per_tile.sum(0)
    return (per_output.sum() if gain.numel() == 1 else per_output).reshape(gain.shape).to(gain.dtype)


if not _MISSING:
    for _device in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
        implement("shadow_linear", "triton", _fwd, _device)
        implement("shadow_linear_bwd", "triton", _bwd, _device)
