"""What a call does on the GPU, beyond its time: the kernels it launches and the memory it takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

_WARM_UPS = 3  # compiling and tuning launch kernels of their own


def kernels_of(function: Callable[[], object]) -> list[str]:
    """Names of the kernels, copies and fills that one call puts on the GPU once it is warm."""
    for _ in range(_WARM_UPS):
        function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        function()
        torch.cuda.synchronize()
    return [event.name for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]


def peak_above(function: Callable[[], object]) -> int:
    """Bytes of GPU memory that one warm call has allocated at its peak beyond what was there before, results included."""
    for _ in range(_WARM_UPS):
        function()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
