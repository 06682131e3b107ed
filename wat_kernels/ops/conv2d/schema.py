"""The schema of `shadow_conv2d` and of its backward, shared by all backends, and what they return without data."""

from __future__ import annotations

import torch

from wat_kernels.dispatch import NAMES
from wat_kernels.ops.conv2d.geometry import memory_format, output_size
from wat_kernels.torch_library import define

_ARGUMENTS = (
    "Tensor key, Tensor thresholds, Tensor taps, Tensor taps_t, int[2] stride, int[4] padding, int[2] dilation, "
    "int groups, int shadows, int noise, float amount"
)
SCHEMA = f"(Tensor x, Tensor weight, Tensor? bias, Tensor? gain, {_ARGUMENTS}) -> Tensor"
SCHEMA_BWD = f"(Tensor dy, Tensor x, Tensor weight, Tensor? gain, {_ARGUMENTS}, bool[4] mask) -> (Tensor, Tensor, Tensor, Tensor)"


def _fake_fwd(
    x, weight, bias, gain, key, thresholds, taps, taps_t, stride, padding, dilation, groups, shadows, noise, amount
):
    size = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    shape = (x.shape[0], weight.shape[0], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x, weight))


def _fake_bwd(
    dy, x, weight, gain, key, thresholds, taps, taps_t, stride, padding, dilation, groups, shadows, noise, amount, mask
):
    form = memory_format(x, weight)
    return (
        torch.empty_like(x, memory_format=form) if mask[0] else x.new_empty(0),
        torch.empty_like(weight, memory_format=form) if mask[1] else x.new_empty(0),
        dy.new_empty(weight.shape[0]) if mask[2] else x.new_empty(0),
        torch.empty_like(gain) if mask[3] else x.new_empty(0),
    )


# the reference is a composition of differentiable operations and needs no backward of its own
for _name in NAMES:
    define("shadow_conv2d", SCHEMA, _fake_fwd, _name)
    if _name != "reference":
        define("shadow_conv2d_bwd", SCHEMA_BWD, _fake_bwd, _name)
