"""What a run holds: bytes saved for backward, and the most memory in use during forward and backward."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

_PEAK_FILE = Path("/proc/self/clear_refs")
# Of glibc, for a process that measures itself: everything from 64 KiB on is mapped and given back, so that what is
# resident is what is in use.
MALLOC_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(64 << 10), "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


def saved_bytes(forward: Callable[[], object], known: Sequence[Tensor]) -> int:
    """Bytes that autograd holds after `forward`: each storage once, those of `known` (inputs, parameters) not."""
    addresses = {tensor.untyped_storage().data_ptr() for tensor in known}
    held: dict[int, torch.UntypedStorage] = {}  # the storages are kept alive so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in addresses:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in held.values())


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """The most memory in use during `function` above what was in use before.

    On CUDA, of torch's allocator. On the CPU, resident memory of the process, scratch of every library included: only
    in a process started with MALLOC_ENVIRONMENT, on Linux. Raises RuntimeError with the reason where that is not so.
    """
    function()  # what is made once, as a packed table or a compiled kernel, is not part of it
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    reason = why_no_peak()
    if reason:
        raise RuntimeError(reason)
    ctypes.CDLL(None).malloc_trim(0)
    _PEAK_FILE.write_text("5")  # the high-water mark starts again at what is resident now
    before = _status("VmHWM")
    function()
    return _status("VmHWM") - before


def why_no_peak() -> str:
    """Why the peak of a CPU process cannot be read here; "" where it can."""
    if not sys.platform.startswith("linux"):
        return f"peak memory on the CPU is read from Linux's /proc; this is {sys.platform}"
    try:
        _PEAK_FILE.write_text("5")
    except OSError as error:
        return f"the high-water mark of memory cannot be reset: {error.strerror}"
    return "" if hasattr(ctypes.CDLL(None), "malloc_trim") else "peak memory on the CPU needs glibc's malloc"


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
