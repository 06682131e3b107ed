"""The noise of SW by a Triton kernel, for the backends that make SW as a tensor. Importing this needs Triton."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from wat_kernels import triton_philox
from wat_kernels.triton_launch import INTERPRETED, is_wide, noise_numbers, settle_cache_keys

__all__ = ["INTERPRETED", "draw", "multiply", "noise_kernel"]

BLOCK = 1024


@triton.jit
def noise_kernel(  # type: ignore[no-untyped-def]
    key, source, out, first_shadow, elements, middle, inner, source_outer, source_middle, source_inner,
    out_outer, out_middle, out_inner, scale, cut,
    NOISE: tl.constexpr, MULTIPLY: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK elements of one shadow: (outer, middle, inner) in the order of SW, read and written by strides.

    Without MULTIPLY the factors are written one shadow after the other.
    """
    blocks = tl.cdiv(elements, BLOCK)
    number = tl.program_id(0) // blocks
    start = tl.program_id(0) % blocks
    if WIDE:
        start = start.to(tl.int64)
    start *= BLOCK
    line = start + tl.arange(0, 1)
    factor = triton_philox.noise_factor(
        tl.load(key), first_shadow + number, line, 0, scale, cut, NOISE, True, BLOCK
    )  # (1, BLOCK)
    factor = tl.reshape(factor, (BLOCK,))
    element = start + tl.arange(0, BLOCK)
    inside = element < elements
    if MULTIPLY:
        i = element % inner
        m = element // inner % middle
        o = element // inner // middle
        value = tl.load(source + o * source_outer + m * source_middle + i * source_inner, mask=inside)
        product = value * factor.to(tl.float64) if value.dtype == tl.float64 else value.to(tl.float32) * factor
        place = out + o * out_outer + m * out_middle + i * out_inner
        tl.store(place, product.to(out.dtype.element_ty), mask=inside)
    else:
        if WIDE:
            number = number.to(tl.int64)
        tl.store(out + number * elements + element, factor, mask=inside)


def draw(key: Tensor, shadows: int, elements: int, noise: int, amount: float) -> Tensor:
    """key: () int64. Returns (shadows, elements) float32."""
    out = key.new_empty(shadows, elements, dtype=torch.float32)
    if out.numel():
        strides = (0, 0, 1) * 2
        _launch(key, out, out, 0, shadows, elements, (1, elements), strides, noise, amount, False)
    return out


def multiply(source: Tensor, out: Tensor, key: Tensor, shadow: int, noise: int, amount: float) -> bool:
    """out = source * factors of all elements of SW, in the order of source's dimensions. False where these are too many."""
    shape = _three_dimensions(source, out)
    if shape is None:
        return False
    (_, middle, inner), strides = shape
    if source.numel():
        _launch(key, source, out, shadow, 1, source.numel(), (middle, inner), strides, noise, amount, True)
    return True


def _launch(
    key: Tensor,
    source: Tensor,
    out: Tensor,
    shadow: int,
    shadows: int,
    elements: int,
    sizes: tuple[int, int],
    strides: tuple[int, ...],
    noise: int,
    amount: float,
    multiply: bool,
) -> None:
    settle_cache_keys()
    other = out.device.type == "cuda" and out.device.index != torch.cuda.current_device()
    with torch.cuda.device(out.device) if other else contextlib.nullcontext():  # Triton takes the current one
        noise_kernel[(shadows * triton.cdiv(elements, BLOCK),)](
            key, source, out, shadow, elements, *sizes, *strides, *noise_numbers(noise, amount),
            noise, multiply, is_wide(source, out), BLOCK,
        )  # fmt: skip


def _three_dimensions(source: Tensor, out: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Sizes (3), and strides of source (3) and of out (3), of the fewest dimensions that say the same; None above three."""
    kept: list[tuple[int, int, int]] = []  # (size, stride of source, stride of out), innermost first
    for size, from_, to in zip(reversed(source.shape), reversed(source.stride()), reversed(out.stride()), strict=True):
        if size == 1:
            continue
        if kept and (from_, to) == (kept[-1][0] * kept[-1][1], kept[-1][0] * kept[-1][2]):
            kept[-1] = (kept[-1][0] * size, kept[-1][1], kept[-1][2])
        else:
            kept.append((size, from_, to))
    if len(kept) > 3:
        return None
    kept += [(1, 0, 0)] * (3 - len(kept))
    sizes, sources, outs = (tuple(numbers) for numbers in zip(*reversed(kept), strict=True))
    return sizes, (*sources, *outs)
