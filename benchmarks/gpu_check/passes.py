"""What one pass does on the GPU, beyond its time: the kernels it launches and the memory it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from watnn.transforms import WAT

from wat_kernels import Noise, dispatch
from wat_kernels.ops import conv2d, linear

GPU_BACKENDS = ("cuda", "triton")
_WARM_UPS = 3  # compiling and tuning launch kernels of their own


class Layer(NamedTuple):
    """A layer in bf16, as the op itself: the key is on the GPU already. `passes` are its three passes by name."""

    name: str
    passes: Mapping[str, Callable[[], object]]


def layers() -> Iterator[Layer]:
    """A convolution, a depthwise one, and linear layers of few and many rows, on each backend that takes them."""
    for groups, name in ((1, "conv"), (64, "depthwise")):
        call = dispatch.Call("cuda", torch.bfloat16, (3, 3), 64, 64, groups)
        for backend in accepting(conv2d.BACKENDS, call):
            yield Layer(f"{name}, {backend}", _conv2d(backend, groups))
    for rows in (32, 1024):
        noise = Noise("dropconnect", 0.3)
        call = dispatch.Call("cuda", torch.bfloat16, in_channels=1024, out_channels=2048, noise=noise.code, rows=rows)
        for backend in accepting(linear.BACKENDS, call):
            yield Layer(f"linear of {rows} rows, {backend}", _linear(backend, rows, noise))


def accepting(backends: Mapping[str, dispatch.Backend], call: dispatch.Call) -> list[str]:
    """The GPU backends that run this call."""
    return [name for name in GPU_BACKENDS if backends[name].supports(call)[0]]


def kernels_of(function: Callable[[], object]) -> list[str]:
    """Names of the kernels, copies and fills that one call puts on the GPU once it is warm."""
    for _ in range(_WARM_UPS):
        function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        function()
        torch.cuda.synchronize()
    return [event.name for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]


def bytes_beyond_results(function: Callable[[], object]) -> int:
    """The peak of GPU memory of one warm call above what was allocated before it and what it returns."""
    for _ in range(_WARM_UPS):
        function()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = function()
    peak = torch.cuda.max_memory_allocated()
    kept = torch.cuda.memory_allocated()
    del results
    return peak - max(before, kept)


def _conv2d(backend: str, groups: int) -> dict[str, Callable[[], object]]:
    key = torch.tensor(3, device="cuda")
    form = torch.channels_last
    x, dy = (torch.randn(128, 64, 32, 32, device="cuda").to(torch.bfloat16, memory_format=form) for _ in range(2))
    weight = torch.randn(64, 64 // groups, 3, 3, device="cuda").to(torch.bfloat16, memory_format=form)
    arguments = (key, *WAT().tap_table(3).on(x.device), [1, 1], [1, 1, 1, 1], [1, 1], groups, 1, 0, 0.0)
    op, op_bwd = (getattr(torch.ops.wat_kernels, name) for name in ("shadow_conv2d", "shadow_conv2d_bwd"))
    return {
        "forward": partial(getattr(op, backend), x, weight, None, None, *arguments),
        **_gradients(partial(getattr(op_bwd, backend), dy, x, weight, None, *arguments)),
    }


def _linear(backend: str, rows: int, noise: Noise) -> dict[str, Callable[[], object]]:
    key = torch.tensor(3, device="cuda")
    x, weight, dy = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in ((rows, 1024), (2048, 1024), (rows, 2048))
    )
    arguments = (key, None, None, 1, noise.code, noise.amount)
    op, op_bwd = (getattr(torch.ops.wat_kernels, name) for name in ("shadow_linear", "shadow_linear_bwd"))
    return {
        "forward": partial(getattr(op, backend), x, weight, None, None, *arguments),
        **_gradients(partial(getattr(op_bwd, backend), dy, x, weight, None, *arguments)),
    }


def _gradients(backward: Callable[[list[bool]], object]) -> dict[str, Callable[[], object]]:
    return {
        "data gradient": lambda: backward([True, False, False, False]),
        "weight gradient": lambda: backward([False, True, False, False]),
    }
