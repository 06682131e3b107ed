"""The schema of `shadow_linear` and of its backward, shared by all backends, and what they return without data."""

from __future__ import annotations

import torch

from wat_kernels.dispatch import NAMES
from wat_kernels.torch_library import define

_ARGUMENTS = "Tensor key, Tensor? grid_thresholds, Tensor? grid, int shadows, int noise, float amount"
SCHEMA = f"(Tensor x, Tensor weight, Tensor? bias, Tensor? gain, {_ARGUMENTS}) -> Tensor"
SCHEMA_BWD = f"(Tensor dy, Tensor x, Tensor weight, Tensor? gain, {_ARGUMENTS}, bool[4] mask) -> (Tensor, Tensor, Tensor, Tensor)"


def _fake_fwd(x, weight, bias, gain, key, grid_thresholds, grid, shadows, noise, amount):
    return x.new_empty(x.shape[0], weight.shape[0])


def _fake_bwd(dy, x, weight, gain, key, grid_thresholds, grid, shadows, noise, amount, mask):
    return (
        x.new_empty(x.shape) if mask[0] else x.new_empty(0),
        weight.new_empty(weight.shape) if mask[1] else x.new_empty(0),
        dy.new_empty(weight.shape[0]) if mask[2] else x.new_empty(0),
        torch.empty_like(gain) if mask[3] else x.new_empty(0),
    )


# the reference is a composition of differentiable operations and needs no backward of its own
for _name in NAMES:
    define("shadow_linear", SCHEMA, _fake_fwd, _name)
    if _name != "reference":
        define("shadow_linear_bwd", SCHEMA_BWD, _fake_bwd, _name)
