"""`shadow_conv2d`: the checks, the choice of a backend, the autograd function."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wat_kernels import autograd, dispatch
from wat_kernels.checks import autocast, check_noise, check_parameters, check_shadows
from wat_kernels.draw import as_key
from wat_kernels.noise import Noise
from wat_kernels.ops.conv2d import library, native, reference, triton
from wat_kernels.ops.conv2d.geometry import output_size, pair, resolve_padding
from wat_kernels.tap_table import TableTensors, TapTable

BACKENDS = {"triton": triton, "native": native, "library": library, "reference": reference}  # in order of speed


def shadow_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    table: TapTable,
    key: int | Tensor,
    gain: Tensor | None = None,
    noise: Noise | None = None,
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
    Returns (N, O, H_out, W_out), channels_last if x or weight is.

    Raises TypeError or ValueError naming the argument, RuntimeError when a named backend cannot run this call.
    Source: WAT, arXiv 2405.19590; noise from DAMP, arXiv 2406.16540.
    """
    check_parameters(x, weight, bias, gain, weight_dims=4)
    if x.ndim not in (3, 4):
        raise ValueError(f"x has shape {tuple(x.shape)}; accepted is (N, C, H, W) or (C, H, W)")
    batched = x if x.ndim == 4 else x.unsqueeze(0)
    stride, dilation = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
    kernel = (weight.shape[2], weight.shape[3])
    pads = resolve_padding(padding, kernel, stride, dilation)
    _check_channels(batched, weight, groups)
    check_table(table, kernel)
    size = output_size(batched.shape[2:], kernel, stride, pads, dilation)
    if min(size) < 0 or (min(size) == 0 and min(batched.shape[2:]) > 0):
        raise ValueError(
            f"x of {tuple(batched.shape[2:])} padded by {pads} is smaller than the kernel {kernel} "
            f"with dilation {dilation}"
        )
    check_noise(noise)
    check_shadows(shadows, batched.shape[0])
    key = as_key(key, x.device)
    y = run(
        batched, weight, bias, gain, key, table.on(x.device), stride, pads, dilation, groups, shadows, noise, backend
    )
    return y if x.ndim == 4 else y.squeeze(0)


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    key: Tensor,
    table: TableTensors,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    shadows: int,
    noise: Noise | None,
    backend: str,
) -> Tensor:
    """`shadow_conv2d` after its checks; layers, which have checked their own arguments once, come in here."""
    x, weight, bias = autocast(x, weight, bias)
    code, amount = (0, 0.0) if noise is None else (noise.code, noise.amount)
    call = dispatch.Call(
        x.device.type, x.dtype, (weight.shape[2], weight.shape[3]), x.shape[1], weight.shape[0], groups, code
    )
    backend = dispatch.choose("shadow_conv2d", BACKENDS, backend, call)
    arguments = (*table, stride, padding, dilation, groups, shadows, code, amount)
    return autograd.apply("shadow_conv2d", backend, x, weight, bias, gain, key, arguments)


def check_table(table: TapTable, kernel: tuple[int, int]) -> None:
    """Refuses what is no tap table for this kernel size."""
    if not isinstance(table, TapTable):
        raise TypeError(f"table is {type(table).__name__}; accepted is wat_kernels.TapTable")
    taps = kernel[0] * kernel[1]
    if table.maps.shape[1] != taps or table.kernel_size not in (None, kernel):
        raise ValueError(f"table={table!r} is for another kernel size; the weight's is {kernel[0]}x{kernel[1]}")


def _check_channels(x: Tensor, weight: Tensor, groups: int) -> None:
    if not isinstance(groups, int) or groups < 1 or weight.shape[0] % groups:
        raise ValueError(
            f"groups={groups!r}; accepted is an int >= 1 that divides the {weight.shape[0]} output channels"
        )
    if x.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            f"x has {x.shape[1]} channels; weight {tuple(weight.shape)} with groups={groups} takes "
            f"{weight.shape[1] * groups}"
        )
