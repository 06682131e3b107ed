"""`shadow_conv`: the checks, the choice of a backend, the autograd function."""

from __future__ import annotations

import math
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
    check_outputs,
    check_parameters,
    check_shadows,
    metas_of,
    once,
    without_autocast,
)
from wat_kernels.draw import as_key
from wat_kernels.noise import Noise, TensorNoise
from wat_kernels.ops.conv import cuda, library, native, reference, triton
from wat_kernels.ops.conv.geometry import Convolution, numbers, resolve_padding, transposed_padding
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


def shadow_conv(
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
    transposed: bool = False,
    output_padding: int | Sequence[int] = 0,
    shadows: int = 1,
    backend: str = "auto",
) -> Tensor:
    """A convolution of 1, 2 or 3 dimensions with the shadow weight that `key` draws, or a transposed one.

        SW = (M PW) * eps,   y = gain * conv(x, SW) + bias

    x:      (N, C, *size) or (C, *size)
    weight: the plain weight PW, (O, C / groups, *kernel); of a transposed convolution (C, O / groups, *kernel)
    bias:   (O,) or None
    table:  the tap maps to draw from, for this kernel size; K, the number of taps, is the product of its sizes
    key:    int, or int64 tensor with one element on x's device; the same key gives the same SW
    gain:   learnable scale, one element or (O,), or None
    noise:  elementwise noise on SW after the tap map, or None. Element [a, b, t] of the weight, of shape (A, B, K), has the
            number (a * K + t) * B + b, transposed or not
    stride, padding, dilation, groups: as in torch.nn.functional.conv2d, for each dimension one number or one for all
    transposed, output_padding: as in torch.nn.functional.conv_transpose2d, which knows no padding but numbers
    shadows: the batch is cut into this many contiguous chunks, each with its own draw; must divide N
    backend: "auto", "reference", "library", "native", "triton" or "cuda"
    Returns (N, O, *output size), in the memory format that torch's convolution gives.

    Raises TypeError or ValueError naming the argument, RuntimeError when a named backend cannot run this call.
    Source: WAT, arXiv 2405.19590; noise from DAMP, arXiv 2406.16540.
    """
    return _convolve(
        None, transposed, x, weight, bias, table, key, gain, noise, stride, padding, dilation, groups, output_padding,
        shadows, backend,
    )  # fmt: skip


def shadow_conv1d(
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
    """`shadow_conv2d` of sequences.

    x:      (N, C, L) or (C, L)
    weight: (O, C / groups, k), the plain weight PW
    Returns (N, O, L_out). The other arguments are those of `shadow_conv`, and the errors, too.
    """
    return _convolve(
        1, False, x, weight, bias, table, key, gain, noise, stride, padding, dilation, groups, 0, shadows, backend
    )


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
    return _convolve(
        2, False, x, weight, bias, table, key, gain, noise, stride, padding, dilation, groups, 0, shadows, backend
    )


def shadow_conv3d(
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
    """`shadow_conv2d` of volumes.

    x:      (N, C, D, H, W) or (C, D, H, W)
    weight: (O, C / groups, kd, kh, kw), the plain weight PW
    Returns (N, O, D_out, H_out, W_out). The other arguments are those of `shadow_conv`, and the errors, too.
    """
    return _convolve(
        3, False, x, weight, bias, table, key, gain, noise, stride, padding, dilation, groups, 0, shadows, backend
    )


def shadow_conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    table: TapTable,
    key: int | Tensor,
    gain: Tensor | None = None,
    noise: Noise | TensorNoise | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    shadows: int = 1,
    backend: str = "auto",
) -> Tensor:
    """The transposed convolution of sequences, `y = gain * conv_transpose1d(x, SW) + bias`.

    x:      (N, C, L) or (C, L)
    weight: (C, O / groups, k), the plain weight PW
    bias, gain: of the O channels of y
    Returns (N, O, L_out). The other arguments are those of `shadow_conv`, and the errors, too.
    """
    return _convolve(
        1, True, x, weight, bias, table, key, gain, noise, stride, padding, dilation, groups, output_padding, shadows,
        backend,
    )  # fmt: skip


def shadow_conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    table: TapTable,
    key: int | Tensor,
    gain: Tensor | None = None,
    noise: Noise | TensorNoise | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    shadows: int = 1,
    backend: str = "auto",
) -> Tensor:
    """The transposed convolution of images, `y = gain * conv_transpose2d(x, SW) + bias`.

    x:      (N, C, H, W) or (C, H, W)
    weight: (C, O / groups, kh, kw), the plain weight PW
    bias, gain: of the O channels of y
    Returns (N, O, H_out, W_out). The other arguments are those of `shadow_conv`, and the errors, too.
    """
    return _convolve(
        2, True, x, weight, bias, table, key, gain, noise, stride, padding, dilation, groups, output_padding, shadows,
        backend,
    )  # fmt: skip


def shadow_conv_transpose3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    table: TapTable,
    key: int | Tensor,
    gain: Tensor | None = None,
    noise: Noise | TensorNoise | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    shadows: int = 1,
    backend: str = "auto",
) -> Tensor:
    """The transposed convolution of volumes, `y = gain * conv_transpose3d(x, SW) + bias`.

    x:      (N, C, D, H, W) or (C, D, H, W)
    weight: (C, O / groups, kd, kh, kw), the plain weight PW
    bias, gain: of the O channels of y
    Returns (N, O, D_out, H_out, W_out). The other arguments are those of `shadow_conv`, and the errors, too.
    """
    return _convolve(
        3, True, x, weight, bias, table, key, gain, noise, stride, padding, dilation, groups, output_padding, shadows,
        backend,
    )  # fmt: skip


def _convolve(
    dims: int | None,
    transposed: bool,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    table: TapTable,
    key: int | Tensor,
    gain: Tensor | None,
    noise: Noise | TensorNoise | None,
    stride: int | Sequence[int],
    padding: str | int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    output_padding: int | Sequence[int],
    shadows: int,
    backend: str,
) -> Tensor:
    """`shadow_conv`. dims: what a caller by the name of its dimensions asks for, or None for those of the weight"""
    metas = metas_of(x, weight, bias, gain)
    cast_to = autocast_dtype(x.device.type)
    plan = _plan(
        *metas, dims, transposed, cast_to, table, noise, stride, padding, dilation, groups, output_padding, shadows, backend,
        dispatch.environment(),
    )  # fmt: skip
    key = as_key(key, x.device)
    unbatched = x.ndim != weight.ndim
    inputs = cast(cast_to, x.unsqueeze(0) if unbatched else x, weight, bias)
    with without_autocast(cast_to, x.device.type):
        if plan.empty:
            y = _plain(*inputs, gain, plan.layout)
        else:
            dispatch.record(plan.decision)
            draw = Draw(key, table.on(x.device), shadows, *plan.noise)
            y = autograd.apply("shadow_conv", plan.decision.backend, *inputs, gain, draw, plan.layout)
    return y.squeeze(0) if unbatched else y


class _Plan(NamedTuple):
    """What a call comes down to once it is checked: the backend and why not a faster one, and how it is laid out.

    noise: kind and amount
    empty: without input channels there is no weight to draw
    """

    decision: dispatch.Decision
    layout: Convolution
    noise: tuple
    empty: bool


_ACCEPTED = {1: "(N, C, L) or (C, L)", 2: "(N, C, H, W) or (C, H, W)", 3: "(N, C, D, H, W) or (C, D, H, W)"}


@once
def _plan(
    x: Meta,
    weight: Meta,
    bias: Meta | None,
    gain: Meta | None,
    dims: int | None,
    transposed: bool,
    cast_to: torch.dtype | None,
    table: TapTable,
    noise: Noise | TensorNoise | None,
    stride: int | tuple[int, ...],
    padding: str | int | tuple[int, ...],
    dilation: int | tuple[int, ...],
    groups: int,
    output_padding: int | tuple[int, ...],
    shadows: int,
    backend: str,
    environment: str,
) -> _Plan:
    """All checks, and the choice of a backend."""
    check_parameters(x, weight, bias, gain, (3, 4, 5) if dims is None else (dims + 2,), cast_to)
    dims = len(weight.shape) - 2
    if len(x.shape) not in (dims + 1, dims + 2):
        raise ValueError(f"x has shape {tuple(x.shape)}; accepted is {_ACCEPTED[dims]}")
    if not isinstance(transposed, bool):
        raise TypeError(f"transposed={transposed!r}; accepted is a bool")
    batch = x.shape[0] if len(x.shape) == dims + 2 else 1
    channels, *size = x.shape[-dims - 1 :]
    kernel = tuple(weight.shape[2:])
    stride, dilation = numbers(stride, "stride", 1, dims), numbers(dilation, "dilation", 1, dims)
    if transposed:
        around = transposed_padding(padding, output_padding, kernel, stride, dilation)  # type: ignore[arg-type]
    elif output_padding == 0:
        around = resolve_padding(padding, kernel, stride, dilation)
    else:
        raise ValueError(f"output_padding={output_padding!r}; accepted is 0 where transposed=False")
    layout = Convolution(stride, around, dilation, groups, transposed)
    _check_channels(channels, weight.shape, groups, transposed)
    outputs = layout.outputs(weight.shape)
    check_outputs(bias, gain, outputs)
    check_table(table, kernel)
    _check_sizes(x.shape, size, kernel, layout, batch > 0 and channels > 0)
    check_noise(noise)
    check_shadows(shadows, batch)
    code, amount = (0, 0.0) if noise is None else (noise.code, noise.amount)
    dtype = cast_dtype(cast_to, x.dtype)
    pixels = math.prod(size if transposed else layout.output_size(size, kernel))
    call = dispatch.Call(
        x.device.type, dtype, kernel, channels, outputs, groups, code, batch * pixels, x.device.index, transposed
    )
    chosen = dispatch.decide("shadow_conv", BACKENDS, backend, environment, call)
    return _Plan(chosen, layout, (code, amount), channels == 0)


def _plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    layout: Convolution,
) -> Tensor:
    """torch's own convolution of images without channels, whatever torch makes of them."""
    before, behind = layout.padding[::2], layout.padding[1::2]
    more = [0] * len(before)  # of a transposed convolution: its output_padding
    if layout.transposed:
        more = [a - b for a, b in zip(before, behind, strict=True)]
    elif before != behind:
        x, before = F.pad(x, layout.padding_of_torch()), (0,) * len(before)
    if gain is not None:
        channels = (1, -1) if layout.transposed else (-1, 1)
        weight = weight * gain.reshape(*channels, *[1] * len(before)).to(weight.dtype)
    return torch.convolution(
        x, weight, bias, layout.stride, before, layout.dilation, layout.transposed, more, layout.groups
    )


def check_table(table: TapTable, kernel: tuple[int, ...]) -> None:
    """Refuses what is no tap table for this kernel size. A kernel of k taps in a row is the 1 x k one of images."""
    if not isinstance(table, TapTable):
        raise TypeError(f"table is {type(table).__name__}; accepted is wat_kernels.TapTable")
    known = table.kernel_size
    fits = known is None or known == kernel or (len(kernel) == 1 and known == (1, *kernel))
    if table.maps.shape[1] != math.prod(kernel) or not fits:
        size = "x".join(map(str, kernel))
        raise ValueError(f"table={table!r} is for another kernel size; the weight's is {size}")


def _check_channels(channels: int, weight: torch.Size, groups: int, transposed: bool) -> None:
    if weight[1 if transposed else 0] == 0:
        raise ValueError(f"weight has shape {tuple(weight)}; accepted is at least one output channel")
    divided = "input" if transposed else "output"
    if not isinstance(groups, int) or groups < 1 or weight[0] % groups:
        raise ValueError(f"groups={groups!r}; accepted is an int >= 1 that divides the {weight[0]} {divided} channels")
    taken = weight[0] if transposed else weight[1] * groups
    if channels != taken:
        raise ValueError(f"x has {channels} channels; weight {tuple(weight)} with groups={groups} takes {taken}")


def _check_sizes(
    shape: torch.Size, size: Sequence[int], kernel: tuple[int, ...], layout: Convolution, something: bool
) -> None:
    """Refuses a y without pixels. something: whether x has images and channels"""
    output = layout.output_size(size, kernel)
    if min(output) < 1 and layout.transposed:
        raise ValueError(
            f"x of {tuple(size)} cut by {layout.padding} gives a y of {output}; accepted is at least 1 of each"
        )
    if min(output) < 1:
        raise ValueError(
            f"x of {tuple(size)} padded by {layout.padding} is smaller than the kernel {kernel} with dilation "
            f"{layout.dilation}"
        )
    if min(size) == 0 and something:
        raise ValueError(
            f"x has shape {tuple(shape)}; accepted are images without pixels only without batch or channels"
        )
