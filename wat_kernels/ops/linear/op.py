"""`shadow_linear`: the checks, the choice of a backend, the autograd function."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wat_kernels import autograd, dispatch
from wat_kernels.checks import (
    Meta,
    autocast_dtype,
    cast,
    cast_dtype,
    check_noise,
    check_outputs,
    check_parameters,
    check_shadows,
    metas_of,
    once,
    without_autocast,
)
from wat_kernels.draw import as_key
from wat_kernels.matrix_grid import MatrixGrid
from wat_kernels.noise import Noise, TensorNoise
from wat_kernels.ops.linear import cuda, library, native, reference, triton
from wat_kernels.ops.linear.schema import Linear
from wat_kernels.signature import Draw

# In the order in which `auto` asks: few rows to cuda, the others to triton, where this GPU is qualified.
BACKENDS = {
    "native": native,
    "cuda": cuda,
    "triton": triton,
    "library": library,
    "reference": reference,
}

_LAYOUT = Linear()


def shadow_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    key: int | Tensor,
    gain: Tensor | None = None,
    grid: MatrixGrid | None = None,
    noise: Noise | TensorNoise | None = None,
    shadows: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Linear layer with the shadow weight that `key` draws, `y = gain * x SW^T + bias`, `SW = grid(PW) * eps`.

    x:      (..., in)
    weight: (out, in), the plain weight PW
    bias:   (out,) or None
    key:    int, or int64 tensor with one element on x's device; the same key gives the same SW
    gain:   learnable scale, one element or (out,), or None
    grid:   translation or flip of the whole (out, in) matrix, or None
    noise:  elementwise noise on SW after the grid, or None
    shadows: x is cut along its first dimension into this many contiguous chunks, each with its own draw; must divide it
    backend: "auto", "reference", "library", "native", "triton" or "cuda"
    Returns (..., out).

    Raises TypeError or ValueError naming the argument, RuntimeError when a named backend cannot run this call.
    Source: WAT, arXiv 2405.19590; noise from DAMP, arXiv 2406.16540; DropConnect, Wan et al., ICML 2013.
    """
    metas = metas_of(x, weight, bias, gain)
    cast_to = autocast_dtype(x.device.type)
    plan = _plan(*metas, cast_to, grid, noise, shadows, backend, dispatch.environment())
    key = as_key(key, x.device)
    rows = x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    inputs = cast(cast_to, rows, weight, bias)
    with without_autocast(cast_to, x.device.type):
        if plan.empty:
            y = _plain(*inputs, gain)
        else:
            dispatch.record(plan.decision)
            draw = Draw(key, None if grid is None else grid.on(x.device), shadows, *plan.noise)
            y = autograd.apply("shadow_linear", plan.decision.backend, *inputs, gain, draw, _LAYOUT)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], weight.shape[0])


class _Plan(NamedTuple):
    """What a call comes down to once it is checked: the backend and why not a faster one.

    noise: kind and amount
    empty: without features there is no weight to draw
    """

    decision: dispatch.Decision
    noise: tuple
    empty: bool


@once
def _plan(
    x: Meta,
    weight: Meta,
    bias: Meta | None,
    gain: Meta | None,
    cast_to: torch.dtype | None,
    grid: MatrixGrid | None,
    noise: Noise | TensorNoise | None,
    shadows: int,
    backend: str,
    environment: str,
) -> _Plan:
    """All checks, and the choice of a backend."""
    check_parameters(x, weight, bias, gain, (2,), cast_to)
    check_outputs(bias, gain, weight.shape[0])
    if len(x.shape) == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; accepted is (..., {weight.shape[1]}) for weight {tuple(weight.shape)}"
        )
    check_noise(noise)
    if grid is not None and not isinstance(grid, MatrixGrid):
        raise TypeError(f"grid is {type(grid).__name__}; accepted is wat_kernels.MatrixGrid or None")
    check_shadows(shadows, x.shape[0] if len(x.shape) > 1 else 1)
    code, amount = (0, 0.0) if noise is None else (noise.code, noise.amount)
    dtype = cast_dtype(cast_to, x.dtype)
    rows = math.prod(x.shape[:-1])
    call = dispatch.Call(
        x.device.type,
        dtype,
        in_channels=weight.shape[1],
        out_channels=weight.shape[0],
        noise=code,
        rows=rows,
        device_index=x.device.index,
    )
    chosen = dispatch.decide("shadow_linear", BACKENDS, backend, environment, call)
    return _Plan(chosen, (code, amount), 0 in weight.shape)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None) -> Tensor:
    """torch's own linear layer without input or output features."""
    if gain is not None:
        weight = weight * gain.reshape(-1, 1).to(weight.dtype)
    return F.linear(x, weight, bias)
