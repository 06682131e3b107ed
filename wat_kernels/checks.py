"""Checks and casts that the ops share. Errors name the argument, what came and what is accepted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from wat_kernels.noise import Noise, TensorNoise

PLAIN = (Tensor, torch.nn.Parameter)  # types that hide nothing
# Types of device that autocast does not know: asking whether it is enabled there raises. Looked up here once, because
# the compiler of torch 2.10 and 2.11 cannot trace the question.
_WITHOUT_AUTOCAST = frozenset(
    device for device in ("meta", "lazy", "vulkan") if not torch.amp.is_autocast_available(device)
)
Plan = TypeVar("Plan")
_forget: list[Callable[[], None]] = []


class Meta(NamedTuple):
    """What the checks look at of a tensor."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def metas_of(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None
) -> tuple[Meta, Meta, Meta | None, Meta | None]:
    """The four metas; TypeError for what is neither a tensor nor an absent bias or gain, or a weight of another layout."""
    if not (isinstance(x, Tensor) and isinstance(weight, Tensor)):
        name, value = ("weight", weight) if isinstance(x, Tensor) else ("x", x)
        raise TypeError(f"{name} is {type(value).__name__}; accepted is a tensor")
    if type(weight) not in PLAIN and is_traceable_wrapper_subclass(weight):
        raise TypeError(
            f"weight is {type(weight).__name__}; accepted is a plain tensor: a quantized or distributed weight cannot be "
            "redrawn (use AOM, or quantize what watnn.export returns)"
        )
    for name, value in (("bias", bias), ("gain", gain)):
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name} is {type(value).__name__}; accepted is a tensor or None")
    return (
        Meta(x.shape, x.dtype, x.device),
        Meta(weight.shape, weight.dtype, weight.device),
        None if bias is None else Meta(bias.shape, bias.dtype, bias.device),
        None if gain is None else Meta(gain.shape, gain.dtype, gain.device),
    )


def once(plan: Callable[..., Plan]) -> Callable[..., Plan]:
    """`plan`, which checks a call by its shapes and settings alone, run once for each such call.

    On a small layer the checks would cost more than the convolution.
    """
    remembered = functools.lru_cache(maxsize=4096, typed=True)(plan)
    _forget.append(remembered.cache_clear)

    @functools.wraps(plan)
    def call(*arguments: Any) -> Plan:
        if not torch.compiler.is_compiling():
            try:
                return remembered(*arguments)
            except TypeError:
                pass  # an argument without a hash, or one that a check refuses: plan says which
        return plan(*arguments)

    return call


def forget_decisions() -> None:
    """Has every call checked again, and a backend chosen for it."""
    for forget in _forget:
        forget()


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype to compute in where autocast is on for this type of device, else None."""
    if device in _WITHOUT_AUTOCAST or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def without_autocast(cast_to: torch.dtype | None, device: str) -> AbstractContextManager:
    """Autocast off for what runs on tensors that are already cast, backends' fp32 arithmetic on weights among it.

    cast_to: what `autocast_dtype(device)` gave.
    """
    return nullcontext() if cast_to is None else torch.autocast(device, enabled=False)


def check_parameters(
    x: Meta,
    weight: Meta,
    bias: Meta | None,
    gain: Meta | None,
    weight_dims: tuple[int, ...],
    cast_to: torch.dtype | None,
) -> None:
    """Dtypes and devices of what every op takes. cast_to: the dtype of autocast where it is on."""
    for name, meta in (("x", x), ("weight", weight), ("bias", bias), ("gain", gain)):
        if meta is None:
            continue
        if meta.device != x.device:
            raise ValueError(f"{name} is on {meta.device}, x is on {x.device}; all must be on one device")
        if not meta.dtype.is_floating_point:
            raise TypeError(f"{name} is {meta.dtype}; accepted is a floating-point dtype")
        if name in ("weight", "bias") and cast_dtype(cast_to, meta.dtype) != cast_dtype(cast_to, x.dtype):
            advice = "or use autocast" if cast_to is None else "autocast leaves float64 as it is"
            raise TypeError(f"{name} is {meta.dtype}, x is {x.dtype}; both must have one dtype ({advice})")
    if len(weight.shape) not in weight_dims:
        accepted = " or ".join(map(str, weight_dims))
        raise ValueError(f"weight has shape {tuple(weight.shape)}; accepted are {accepted} dimensions")


def check_outputs(bias: Meta | None, gain: Meta | None, channels: int) -> None:
    """Shapes of what stands on the outputs."""
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; accepted is ({channels},), one for each output channel")
    if gain is not None and (
        len(gain.shape) > 1 or (len(gain.shape) == 1 and gain.shape[0] != 1 and gain.shape[0] != channels)
    ):
        raise ValueError(f"gain has shape {tuple(gain.shape)}; accepted is one element or ({channels},)")


def check_shadows(shadows: int, batch: int) -> None:
    """Refuses a number of shadows that does not cut the batch into equal chunks."""
    if not isinstance(shadows, int) or shadows < 1:
        raise ValueError(f"shadows={shadows!r}; accepted is an int >= 1")
    if batch % shadows:
        raise ValueError(f"shadows={shadows} does not divide the batch of {batch}")


def check_noise(noise: Noise | TensorNoise | None) -> None:
    if noise is not None and not isinstance(noise, Noise | TensorNoise):
        raise TypeError(f"noise is {type(noise).__name__}; accepted is wat_kernels.Noise or None")


def cast(
    cast_to: torch.dtype | None, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors in autocast's dtype, as torch does for its own convolutions and matmuls; fp64 stays fp64."""
    if cast_to is None:
        return x, weight, bias
    x, weight = x.to(cast_dtype(cast_to, x.dtype)), weight.to(cast_dtype(cast_to, weight.dtype))
    return x, weight, None if bias is None else bias.to(cast_dtype(cast_to, bias.dtype))


def cast_dtype(cast_to: torch.dtype | None, dtype: torch.dtype) -> torch.dtype:
    """What a tensor of `dtype` is computed in."""
    return dtype if cast_to is None or dtype == torch.float64 else cast_to
