"""The overloads of `shadow_conv` and of its backward, and what they return without data."""

from __future__ import annotations

import torch

from wat_kernels.dispatch import NAMES
from wat_kernels.ops.conv.geometry import Convolution, memory_format, new
from wat_kernels.signature import Signature, gradients
from wat_kernels.tap_table import TableTensors
from wat_kernels.torch_library import define_shadow_op

SIGNATURE = Signature("shadow_conv", TableTensors, Convolution)


def _fake(x, weight, bias, gain, draw, layout):
    return new(x, layout.output_shape(x, weight), memory_format(x, weight))


def _fake_backward(dy, x, weight, gain, draw, layout, mask):
    form = memory_format(x, weight)
    return gradients(
        x,
        new(x, x.shape, form) if mask[0] else None,
        new(weight, weight.shape, form) if mask[1] else None,
        dy.new_empty(dy.shape[1]) if mask[2] else None,
        torch.empty_like(gain) if mask[3] else None,
    )


define_shadow_op(SIGNATURE, _fake, _fake_backward, NAMES)
