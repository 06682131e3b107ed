"""What one pass does on the GPU, beyond its time: the kernels it launches and the memory it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from watnn.bench.shapes import Shape
from watnn.bench.suites.linear import Shape as LinearShape
from watnn.transforms import WAT

from wat_kernels import Noise, dispatch
from wat_kernels.ops import conv, linear

GPU_BACKENDS = ("cuda", "triton")
_WARM_UPS = 3  # compiling and tuning launch kernels of their own


class Layer(NamedTuple):
    """A layer in bf16, as the op itself: the key is on the GPU already. `passes` are its three passes by name."""

    name: str
    passes: Mapping[str, Callable[[], object]]

    @property
    def arguments(self) -> tuple:
        """Those of the forward pass: x, weight, bias, gain, and what is drawn."""
        return self.passes["forward"].args  # type: ignore[attr-defined]


def layers() -> Iterator[Layer]:
    """A convolution, a depthwise one, and linear layers of few and many rows, on each backend that takes them."""
    for depthwise, name in ((False, "conv"), (True, "depthwise")):
        shape = Shape(64, 32, batch=128, depthwise=depthwise)
        call = dispatch.Call("cuda", torch.bfloat16, (3, 3), 64, 64, shape.groups)
        for backend in accepting(conv.BACKENDS, call):
            yield Layer(f"{name}, {backend}", conv2d_passes(backend, shape))
    noise = Noise("dropconnect", 0.3)
    for rows in (32, 1024):
        call = dispatch.Call("cuda", torch.bfloat16, in_channels=1024, out_channels=2048, noise=noise.code, rows=rows)
        for backend in accepting(linear.BACKENDS, call):
            passes = linear_passes(backend, LinearShape(1024, 2048, rows), noise)
            yield Layer(f"linear of {rows} rows, {backend}", passes)


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


def conv2d_passes(
    backend: str, shape: Shape, device: str = "cuda", dtype: torch.dtype = torch.bfloat16
) -> dict[str, Callable[[], object]]:
    """The passes of a convolution with the draws of WAT() and a weight in channels_last, by name."""
    form = torch.channels_last
    key = torch.tensor(3, device=device)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, device=device).to(dtype, memory_format=form)

    x, dy = (normal(shape.batch, shape.channels, shape.image, shape.image) for _ in range(2))
    weight = normal(shape.channels, shape.channels // shape.groups, shape.kernel, shape.kernel)
    pads = [shape.padding] * 4
    drawn = (key, *WAT().tap_table(shape.kernel).on(x.device), [1, 1], pads, [1, 1], shape.groups, False, 1, 0, 0.0)
    return _passes("shadow_conv", backend, x, weight, dy, drawn)


def linear_passes(
    backend: str, shape: LinearShape, noise: Noise, device: str = "cuda", dtype: torch.dtype = torch.bfloat16
) -> dict[str, Callable[[], object]]:
    """The passes of a linear layer with noise on each weight, by name."""
    key = torch.tensor(3, device=device)
    x, weight, dy = (
        torch.randn(size, device=device, dtype=dtype)
        for size in ((shape.rows, shape.inputs), (shape.outputs, shape.inputs), (shape.rows, shape.outputs))
    )
    return _passes("shadow_linear", backend, x, weight, dy, (key, None, None, 1, noise.code, noise.amount))


def _passes(
    op: str, backend: str, x: Tensor, weight: Tensor, dy: Tensor, drawn: tuple
) -> dict[str, Callable[[], object]]:
    forward, backward = (getattr(getattr(torch.ops.wat_kernels, name), backend) for name in (op, f"{op}_bwd"))
    return {
        "forward": partial(forward, x, weight, None, None, *drawn),
        "data gradient": lambda: backward(dy, x, weight, None, *drawn, [True, False, False, False]),
        "weight gradient": lambda: backward(dy, x, weight, None, *drawn, [False, True, False, False]),
    }
