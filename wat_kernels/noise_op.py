"""The noise of SW as ops, for the backends that make SW as a tensor: `noise` and `noise_multiply`.

    noise(key, shadows, elements, noise, amount)                         the factors, (shadows, elements) float32
    noise_multiply(source, out, first, steps, key, shadow, noise, amount)   out = source * factors; `out` may be `source`

Element e of a shadow is e = (o*K + t)*I + i. `source` is any part of SW in any layout of 1 to 4 dimensions: `first` is the
element that its first entry is multiplied by, steps[d] how many elements one step along dimension d is.

Each has an overload for each way to make the numbers, which are those of `philox` (masks exactly, Gaussian numbers to a
few ulp): `native` C++ on the CPU, `triton` on a GPU, `library` in plain PyTorch, in slices, so that its integers take a
few MiB for a weight of any size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wat_kernels import philox, torch_func
from wat_kernels.extension import NATIVE
from wat_kernels.noise import DROP_CONNECT, MULTIPLICATIVE
from wat_kernels.torch_library import LIBRARY, SCALED, define, implement

try:
    from wat_kernels import triton_noise
except ImportError:  # without Triton; the backends that need it say so
    triton_noise = None  # type: ignore[assignment]

_SLICE = 2**17  # elements at a time in plain PyTorch: small enough for a cache
_NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_SCHEMA = "(Tensor key, int shadows, int elements, int noise, float amount) -> Tensor"
_SCHEMA_MULTIPLY = (
    "(Tensor source, Tensor(a!) out, int first, int[] steps, Tensor key, int shadow, int noise, float amount) -> ()"
)


def draw(key: Tensor, shadows: int, elements: int, noise: int, amount: float | Tensor) -> Tensor:
    """The factors of `shadows` shadows. key: () int64. Returns (shadows, elements) float32 on the key's device.

    Raises ValueError for a kind of noise that does not exist.
    """
    _check_kind(noise)
    if torch_func.active():  # the key may be batched, for which an op has no rule but its parts have
        return _plain(key, shadows, elements, noise, amount)
    ops = torch.ops.wat_kernels
    op = getattr(ops, f"noise{SCALED}") if isinstance(amount, Tensor) else ops.noise
    return getattr(op, _backend(key, torch.float32))(key, shadows, elements, noise, amount)


def multiply(
    source: Tensor,
    out: Tensor,
    key: Tensor,
    shadow: int,
    noise: int,
    amount: float,
    *,
    first: int = 0,
    steps: Sequence[int] | None = None,
) -> Tensor:
    """source times the factors of one shadow, written to `out` (same shape and dtype; may be `source`) and returned.

    steps: without it, `source` is all of SW in the order of its elements
    """
    _check_kind(noise)
    steps = _in_order(source.shape) if steps is None else steps
    if source.dtype == torch.float16 and _backend(key, torch.float32) == "native":
        _through_fp32(source, out, key, shadow, noise, amount, first, steps)
        return out
    overload = getattr(torch.ops.wat_kernels.noise_multiply, _backend(key, source.dtype))
    overload(source, out, first, steps, key, shadow, noise, amount)
    return out


def _through_fp32(
    source: Tensor, out: Tensor, key: Tensor, shadow: int, noise: int, amount: float, first: int, steps: Sequence[int]
) -> None:
    """`multiply` by the native code, which has no fp16, a few lines of the outermost dimension at a time."""
    lines = max(1, _SLICE * len(source) // max(source.numel(), 1))
    for at in range(0, len(source), lines):
        part = source[at : at + lines].float()
        multiply(part, part, key, shadow, noise, amount, first=first + at * steps[0], steps=steps)
        out[at : at + lines].copy_(part)


def _backend(key: Tensor, dtype: torch.dtype) -> str:
    if key.device.type == "cpu" and NATIVE.available and dtype in _NATIVE_DTYPES:
        return "native"
    return "triton" if key.device.type == "cuda" and triton_noise is not None else "library"


def _check_kind(noise: int) -> None:
    if noise not in (MULTIPLICATIVE, DROP_CONNECT):
        raise ValueError(f"noise={noise} is not a kind of noise; accepted are {MULTIPLICATIVE} and {DROP_CONNECT}")


def _in_order(shape: Sequence[int]) -> list[int]:
    steps = [1] * len(shape)
    for d in range(len(shape) - 1, 0, -1):
        steps[d - 1] = steps[d] * shape[d]
    return steps


def _factors(
    key: Tensor, shadow: int, shadows: int, first: int, elements: int, noise: int, amount: float | Tensor
) -> Tensor:
    """(shadows, elements) float32 from `first`, a multiple of 8, on."""
    if noise == MULTIPLICATIVE:
        return 1 + amount * philox.standard_normal(key, shadows, elements, first=first, shadow=shadow)
    mask = philox.keep_mask(key, shadows, elements, amount, first=first, shadow=shadow)
    return mask.to(torch.float32) / (1 - amount)


def _plain(key: Tensor, shadows: int, elements: int, noise: int, amount: float | Tensor) -> Tensor:
    """`noise` in plain PyTorch."""
    step = max(8, _SLICE // max(shadows, 1) // 8 * 8)
    slices = [
        _factors(key, 0, shadows, first, min(step, elements - first), noise, amount)
        for first in range(0, max(elements, 1), step)
    ]
    return slices[0] if len(slices) == 1 else torch.cat(slices, dim=1)


def _plain_multiply(
    source: Tensor,
    out: Tensor,
    first: int,
    steps: Sequence[int],
    key: Tensor,
    shadow: int,
    noise: int,
    amount: float,
) -> None:
    """`noise_multiply` in plain PyTorch: cut along its outermost dimensions until a part lies in one slice."""
    if source.numel() == 0:
        return
    reach = [(size - 1) * step for size, step in zip(source.shape, steps, strict=True)]
    span = sum(reach) + 1
    if span <= _SLICE:
        begin = first // 8 * 8
        run = _factors(key, shadow, 1, begin, first - begin + span, noise, amount)[0]
        # contiguous() because as_strided counts from the storage, and a run may be a cut one
        torch.mul(source, run.contiguous().as_strided(source.shape, steps, first - begin), out=out)
        return
    d = reach.index(max(reach))
    count = max(1, (_SLICE - span + reach[d]) // steps[d])
    for at in range(0, source.shape[d], count):
        size = min(count, source.shape[d] - at)
        parts = source.narrow(d, at, size), out.narrow(d, at, size)
        _plain_multiply(*parts, first + at * steps[d], steps, key, shadow, noise, amount)


def _fake(key, shadows, elements, noise, amount):
    return key.new_empty(shadows, elements, dtype=torch.float32)


def _fake_multiply(source, out, first, steps, key, shadow, noise, amount):
    return None


def _triton_multiply(source, out, first, steps, key, shadow, noise, amount):
    """All of SW in one launch, in any layout of three dimensions; the rest, which a GPU is not given, in slices."""
    if (
        first
        or list(steps) != _in_order(source.shape)
        or not triton_noise.multiply(source, out, key, shadow, noise, amount)
    ):
        _plain_multiply(source, out, first, steps, key, shadow, noise, amount)


for _name in ("native", "triton", "library"):
    define("noise", _SCHEMA, _fake, _name)
    LIBRARY.define(f"noise_multiply.{_name}{_SCHEMA_MULTIPLY}")
    torch.library.register_fake(f"wat_kernels::noise_multiply.{_name}", _fake_multiply, lib=LIBRARY)
implement("noise", "library", _plain)
implement("noise_multiply", "library", _plain_multiply)
if triton_noise is not None:
    for _device in ("CUDA", "CPU") if triton_noise.INTERPRETED else ("CUDA",):
        implement("noise", "triton", triton_noise.draw, _device)
        implement("noise_multiply", "triton", _triton_multiply, _device)
