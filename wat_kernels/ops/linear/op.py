"""`shadow_linear`: the checks, the choice of a backend, the autograd function."""

from __future__ import annotations

from torch import Tensor

from wat_kernels import autograd, dispatch
from wat_kernels.checks import autocast, check_noise, check_parameters, check_shadows
from wat_kernels.draw import as_key
from wat_kernels.matrix_grid import MatrixGrid
from wat_kernels.noise import Noise
from wat_kernels.ops.linear import library, native, reference, triton

BACKENDS = {"triton": triton, "native": native, "library": library, "reference": reference}  # in order of speed


def shadow_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    key: int | Tensor,
    gain: Tensor | None = None,
    grid: MatrixGrid | None = None,
    noise: Noise | None = None,
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
    check_parameters(x, weight, bias, gain, weight_dims=2)
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; accepted is (..., {weight.shape[1]}) for weight {tuple(weight.shape)}"
        )
    check_noise(noise)
    if grid is not None and not isinstance(grid, MatrixGrid):
        raise TypeError(f"grid is {type(grid).__name__}; accepted is wat_kernels.MatrixGrid or None")
    check_shadows(shadows, x.shape[0] if x.ndim > 1 else 1)
    return run(x, weight, bias, gain, as_key(key, x.device), grid, shadows, noise, backend)


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    key: Tensor,
    grid: MatrixGrid | None,
    shadows: int,
    noise: Noise | None,
    backend: str,
) -> Tensor:
    """`shadow_linear` after its checks; layers, which have checked their own arguments once, come in here."""
    x, weight, bias = autocast(x, weight, bias)
    code, amount = (0, 0.0) if noise is None else (noise.code, noise.amount)
    call = dispatch.Call(x.device.type, x.dtype, in_channels=weight.shape[1], out_channels=weight.shape[0], noise=code)
    backend = dispatch.choose("shadow_linear", BACKENDS, backend, call)
    grid_tensors = (None, None) if grid is None else grid.on(x.device)
    arguments = (*grid_tensors, shadows, code, amount)
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    y = autograd.apply("shadow_linear", backend, rows, weight, bias, gain, key, arguments)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], weight.shape[0])
