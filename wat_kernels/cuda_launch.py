"""What the kernels of the compiled CUDA library need on the host: whether they run on a device, and its stream."""

from __future__ import annotations

from functools import cache

import torch

from wat_kernels.compiled_constant import compiled_constant
from wat_kernels.dispatch import Call
from wat_kernels.extension import CUDA


def refusal(call: Call) -> str:
    """Why no kernel of the CUDA library runs this call, or an empty string."""
    if not CUDA.available:
        return CUDA.reason
    if call.device != "cuda":
        return f"x is on {call.device}; it runs on cuda"
    if call.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"x is {call.dtype}; it computes in float32, float16 and bfloat16"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return _device_refusal(-1 if call.device_index is None else call.device_index)


@compiled_constant
def _device_refusal(index: int) -> str:
    """Of cuda:`index`, or of the current device for -1."""
    return _refusal_of(torch.cuda.current_device() if index < 0 else index)


@cache
def _refusal_of(device: int) -> str:
    reason = torch.ops.wat_kernels.cuda_refusal(device)
    return reason and f"its kernels do not run on cuda:{device}: {reason}"


def stream_of(tensor: torch.Tensor) -> int:
    """The address of the stream that torch uses now on the tensor's device.

    It goes to the library as a number: what would ask for it in C++ is in libtorch_cuda, which the library is not linked
    to, so that it loads under a torch without CUDA.
    """
    return torch.cuda.current_stream(tensor.device).cuda_stream


@cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def dense(vector: torch.Tensor | None) -> torch.Tensor | None:
    """A bias or a gain of a dtype and layout that kernels read."""
    if vector is None:
        return None
    readable = vector.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return (vector if readable else vector.float()).contiguous()
