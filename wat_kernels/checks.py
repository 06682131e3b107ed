"""Checks and casts that the ops share. Errors name the argument, what came and what is accepted."""

from __future__ import annotations

import torch
from torch import Tensor

from wat_kernels.noise import Noise


def check_parameters(x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, weight_dims: int) -> None:
    """Types, dtypes, devices and shapes of what every op takes."""
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("gain", gain)):
        if tensor is None and name in ("bias", "gain"):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is {type(tensor).__name__}; accepted is a tensor")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x is on {x.device}; all must be on one device")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} is {tensor.dtype}; accepted is a floating-point dtype")
    if not torch.is_autocast_enabled(x.device.type):
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None and tensor.dtype != x.dtype:
                raise TypeError(f"{name} is {tensor.dtype}, x is {x.dtype}; both must have one dtype (or use autocast)")
    if weight.ndim != weight_dims:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; accepted are {weight_dims} dimensions")
    channels = weight.shape[0]
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; accepted is ({channels},), one for each output channel")
    if gain is not None and gain.shape not in ((), (1,), (channels,)):
        raise ValueError(f"gain has shape {tuple(gain.shape)}; accepted is one element or ({channels},)")


def check_shadows(shadows: int, batch: int) -> None:
    """Refuses a number of shadows that does not cut the batch into equal chunks."""
    if not isinstance(shadows, int) or shadows < 1:
        raise ValueError(f"shadows={shadows!r}; accepted is an int >= 1")
    if batch % shadows:
        raise ValueError(f"shadows={shadows} does not divide the batch of {batch}")


def check_noise(noise: Noise | None) -> None:
    if noise is not None and not isinstance(noise, Noise):
        raise TypeError(f"noise is {type(noise).__name__}; accepted is wat_kernels.Noise or None")


def autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The three in autocast's dtype where autocast is on, as torch does for its own convolutions and matmuls."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
