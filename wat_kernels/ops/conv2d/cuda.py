"""The CUDA C++ backend of depthwise convolutions. The kernels are in csrc/cuda."""

from __future__ import annotations

from wat_kernels.cuda_launch import refusal
from wat_kernels.dispatch import Call


def supports(call: Call) -> tuple[bool, str]:
    reason = refusal(call) or "it has no convolution kernels yet"
    return not reason, reason
