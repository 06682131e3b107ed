"""The overloads of `shadow_conv2d` and of its backward, and what they return without data."""

from __future__ import annotations

import torch

from wat_kernels.dispatch import NAMES
from wat_kernels.ops.conv2d.geometry import Convolution, memory_format
from wat_kernels.signature import Signature, gradients
from wat_kernels.tap_table import TableTensors
from wat_kernels.torch_library import define_shadow_op

SIGNATURE = Signature("shadow_conv2d", TableTensors, Convolution)


def _fake(x, weight, bias, gain, draw, layout):
    shape = layout.output_shape(x, weight)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x, weight))


def _fake_backward(dy, x, weight, gain, draw, layout, mask):
    form = memory_format(x, weight)
    return gradients(
        x,
        torch.empty_like(x, memory_format=form) if mask[0] else None,
        torch.empty_like(weight, memory_format=form) if mask[1] else None,
        dy.new_empty(weight.shape[0]) if mask[2] else None,
        torch.empty_like(gain) if mask[3] else None,
    )


define_shadow_op(SIGNATURE, _fake, _fake_backward, NAMES)
