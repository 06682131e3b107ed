"""`shadow_conv2d`: the checks, the choice of a backend, the autograd function."""

from __future__ import annotations

from collections.abc import Sequence
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
    check_parameters,
    check_shadows,
    metas_of,
    once,
    without_autocast,
)
from wat_kernels.draw import as_key
from wat_kernels.noise import Noise, TensorNoise
from wat_kernels.ops.conv2d import cuda, library, native, reference, triton
from wat_kernels.ops.conv2d.geometry import Convolution, pair, resolve_padding
from wat_kernels.signature import Draw
from wat_kernels.tap_table import TapTable

# In the order in which `auto` asks: depthwise convolutions to cuda, the others to triton, where this GPU is qualified.
BACKENDS = {
    "native": native,
    "cuda": cuda,
    "triton": triton,
    "library": library,
    "reference": reference,
}


def shadow_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    table: TapTable,
    key: int | Tensor,
    gain: Tensor | None = None,
    noise: Noise | TensorNoise | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    shadows: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Convolution with the shadow weight that `key` draws, `y = gain * conv2d(x, (M PW) * eps) + bias`.

    x:      (N, C, H, W) or (C, H, W)
    weight: (O, C / groups, kh, kw), the plain weight PW
    bias:   (O,) or None
    table:  the tap maps to draw from, for this kernel size
    key:    int, or int64 tensor with one element on x's device; the same key gives the same SW
    gain:   learnable scale, one element or (O,), or None
    noise:  elementwise noise on SW after the tap map, or None
    stride, padding, dilation, groups: as in torch.nn.functional.conv2d
    shadows: the batch is cut into this many contiguous chunks, each with its own draw; must divide N
    backend: "auto", "reference", "library", "native", "triton" or "cuda"
    Returns (N, O, H_out, W_out), in the memory format that torch.nn.functional.conv2d gives.

    Raises TypeError or ValueError naming the argument, RuntimeError when a named backend cannot run this call.
    Source: WAT, arXiv 2405.19590; noise from DAMP, arXiv 2406.16540.
    """
    metas = metas_of(x, weight, bias, gain)
    cast_to = autocast_dtype(x.device.type)
    plan = _plan(
        *metas, cast_to, table, noise, stride, padding, dilation, groups, shadows, backend, dispatch.environment()
    )
    key = as_key(key, x.device)
    batched = x if x.ndim == 4 else x.unsqueeze(0)
    inputs = cast(cast_to, batched, weight, bias)
    with without_autocast(cast_to, x.device.type):
        if plan.empty:
            y = _plain(*inputs, gain, plan.layout)
        else:
            dispatch.record(plan.decision)
            draw = Draw(key, table.on(x.device), shadows, *plan.noise)
            y = autograd.apply("shadow_conv2d", plan.decision.backend, *inputs, gain, draw, plan.layout)
    return y if x.ndim == 4 else y.squeeze(0)


class _Plan(NamedTuple):
    """What a call comes down to once it is checked: the backend and why not a faster one, and how it is laid out.

    noise: kind and amount
    empty: without input channels there is no weight to draw
    """

    decision: dispatch.Decision
    layout: Convolution
    noise: tuple
    empty: bool


@once
def _plan(
    x: Meta,
    weight: Meta,
    bias: Meta | None,
    gain: Meta | None,
    cast_to: torch.dtype | None,
    table: TapTable,
    noise: Noise | TensorNoise | None,
    stride: int | tuple[int, ...],
    padding: str | int | tuple[int, ...],
    dilation: int | tuple[int, ...],
    groups: int,
    shadows: int,
    backend: str,
    environment: str,
) -> _Plan:
    """All checks, and the choice of a backend."""
    check_parameters(x, weight, bias, gain, weight_dims=4, cast_to=cast_to)
    if len(x.shape) not in (3, 4):
        raise ValueError(f"x has shape {tuple(x.shape)}; accepted is (N, C, H, W) or (C, H, W)")
    batch, (channels, *size) = x.shape[0] if len(x.shape) == 4 else 1, x.shape[-3:]
    kernel = (weight.shape[2], weight.shape[3])
    stride, dilation = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
    layout = Convolution(stride, resolve_padding(padding, kernel, stride, dilation), dilation, groups)
    _check_channels(channels, weight.shape, groups)
    check_table(table, kernel)
    output = layout.output_size(size, kernel)
    if min(output) < 1:
        raise ValueError(
            f"x of {tuple(size)} padded by {layout.padding} is smaller than the kernel {kernel} with dilation {dilation}"
        )
    if min(size) == 0 and batch > 0 and channels > 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; accepted are images without pixels only without batch or channels"
        )
    check_noise(noise)
    check_shadows(shadows, batch)
    code, amount = (0, 0.0) if noise is None else (noise.code, noise.amount)
    dtype = cast_dtype(cast_to, x.dtype)
    rows = batch * output[0] * output[1]
    call = dispatch.Call(x.device.type, dtype, kernel, channels, weight.shape[0], groups, code, rows, x.device.index)
    chosen = dispatch.decide("shadow_conv2d", BACKENDS, backend, environment, call)
    return _Plan(chosen, layout, (code, amount), channels == 0)


def _plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    layout: Convolution,
) -> Tensor:
    """torch's own convolution of images without channels, whatever torch makes of them."""
    top, bottom, left, right = layout.padding
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    if gain is not None:
        weight = weight * gain.reshape(-1, 1, 1, 1).to(weight.dtype)
    return F.conv2d(x, weight, bias, layout.stride, (top, left), layout.dilation, layout.groups)


def check_table(table: TapTable, kernel: tuple[int, int]) -> None:
    """Refuses what is no tap table for this kernel size."""
    if not isinstance(table, TapTable):
        raise TypeError(f"table is {type(table).__name__}; accepted is wat_kernels.TapTable")
    taps = kernel[0] * kernel[1]
    if table.maps.shape[1] != taps or table.kernel_size not in (None, kernel):
        raise ValueError(f"table={table!r} is for another kernel size; the weight's is {kernel[0]}x{kernel[1]}")


def _check_channels(channels: int, weight: torch.Size, groups: int) -> None:
    if weight[0] == 0:
        raise ValueError(f"weight has shape {tuple(weight)}; accepted is at least one output channel")
    if not isinstance(groups, int) or groups < 1 or weight[0] % groups:
        raise ValueError(f"groups={groups!r}; accepted is an int >= 1 that divides the {weight[0]} output channels")
    if channels != weight[1] * groups:
        raise ValueError(
            f"x has {channels} channels; weight {tuple(weight)} with groups={groups} takes {weight[1] * groups}"
        )
