"""What the machine can do at most, measured in the same run: the rate of multiply-adds and of bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from watnn.bench.case import Work
from watnn.bench.timing import timer_of

_COPY_BYTES = 128 << 20  # far more than a cache
_ROUNDS = 3


class Limits(NamedTuple):
    """flops: floating-point operations a second; bandwidth: bytes a second, read and written ones counted."""

    flops: float
    bandwidth: float

    def seconds(self, work: Work) -> float:
        """No implementation is faster (unless its data stay in a cache): the roofline."""
        return max(work.flops / self.flops, work.bytes / self.bandwidth)


_best: dict[tuple[str, torch.dtype, int], Limits] = {}


def measure_limits(device: str, dtype: torch.dtype) -> Limits:
    """Of `device` with the CPU threads in use: the best that this process has seen, this time included.

    The rate is the fastest of matrix products and dense convolutions of torch: on some processors its convolution is
    much faster than its matrix product, and a limit has to hold for both.
    """
    rates = [flops / _best_seconds(function, device) for flops, function in _probes(device, dtype)]
    source = torch.ones(_COPY_BYTES // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * _COPY_BYTES / _best_seconds(lambda: target.copy_(source), device)
    key = (device, dtype, torch.get_num_threads())
    before = _best.get(key, Limits(0.0, 0.0))
    _best[key] = Limits(max(before.flops, *rates), max(before.bandwidth, bandwidth))
    return _best[key]


def _probes(device: str, dtype: torch.dtype) -> list[tuple[float, Callable[[], object]]]:
    """(FLOPs, function) of dense products that leave nothing to the memory."""
    cuda = torch.device(device).type == "cuda"
    probes = []
    for size in (4096, 8192) if cuda else (1024, 1536):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        probes.append((2.0 * size**3, lambda a=a, b=b: a @ b))
    for batch, channels, image in ((256, 256, 34),) if cuda else ((8, 128, 34), (16, 256, 18)):
        x = torch.randn(batch, channels, image, image, device=device).to(dtype)
        weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype)
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        flops = 2.0 * batch * channels**2 * 9 * (image - 2) ** 2
        probes.append((flops, lambda x=x, weight=weight: F.conv2d(x, weight)))
    return probes


def _best_seconds(function: Callable[[], object], device: str) -> float:
    timer = timer_of(device)
    timer.warm_up(function)
    return min(timer.round([function])[0] for _ in range(_ROUNDS))
