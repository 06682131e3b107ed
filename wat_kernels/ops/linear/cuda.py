"""The CUDA C++ backend of linear layers with few rows. The kernels are in csrc/cuda/linear*."""

from __future__ import annotations

from wat_kernels.cuda_launch import refusal
from wat_kernels.dispatch import Call


def supports(call: Call) -> tuple[bool, str]:
    reason = refusal(call) or "it has no linear kernels yet"
    return not reason, reason
