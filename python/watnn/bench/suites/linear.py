"""Linear layers with noise on each weight, against the same written with torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wat_kernels import Noise, dispatch, draw_key, shadow_linear
from wat_kernels.ops.linear import BACKENDS
from watnn.bench import official
from watnn.bench.case import Case, Contender, Options, Run, Work, layer_modes
from watnn.bench.memory import saved_bytes
from watnn.bench.verify import check_layer

_SIZES = [(1024, 1024), (4096, 4096)]  # in, out
_ROWS = [16, 128, 1024]
_CHECK_KEY = 1
NOISES = {"dropconnect": Noise("dropconnect", 0.3), "multiplicative": Noise("multiplicative", 0.1)}
_EAGER: dict[str, Callable[[Tensor], Tensor]] = {
    "dropconnect": lambda weight: F.dropout(weight, NOISES["dropconnect"].amount),
    "multiplicative": lambda weight: official.multiplied(weight, NOISES["multiplicative"].amount),
}


class Shape(NamedTuple):
    inputs: int
    outputs: int
    rows: int

    def __str__(self) -> str:
        return f"{self.inputs}->{self.outputs} rows {self.rows}"


def cases() -> list[Case]:
    shapes = [Shape(*size, rows) for size in _SIZES for rows in _ROWS]
    return [
        Case("linear", str(shape), partial(contenders, shape), quick=shape == (1024, 1024, 128), layout="row-major")
        for shape in shapes
    ]


def contenders(shape: Shape, options: Options) -> list[Contender]:
    """Everything that is measured for one shape, ours first; a baseline with noise has a fresh draw each call."""
    generator = torch.Generator(options.device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=options.device).to(options.dtype)

    weight = normal(shape.outputs, shape.inputs) / shape.inputs**0.5
    leaves = [tensor.requires_grad_() for tensor in (normal(shape.rows, shape.inputs), weight, normal(shape.outputs))]
    dy = normal(shape.rows, shape.outputs)
    least = work(shape, options.dtype)
    found = [_layer(leaves, dy, name, backend, least, options) for backend in options.backends for name in NOISES]
    if all(contender.backend != "library" for contender in found):
        found += [_layer(leaves, dy, name, "library", least, options) for name in NOISES]
    found.append(Contender("plain", "nn.Linear", "", [_torch_run(F.linear, leaves, dy)], least))
    for name, noisy in _EAGER.items():

        def noisy_linear(x: Tensor, weight: Tensor, bias: Tensor, noisy=noisy) -> Tensor:
            return F.linear(x, noisy(weight), bias)

        found.append(Contender("official", "eager noise", name, [_torch_run(noisy_linear, leaves, dy)], least))
        if options.compiled:
            torch._dynamo.reset()
            run = _torch_run(torch.compile(noisy_linear, dynamic=False), leaves, dy, compiled=True)
            found.append(Contender("compiled", "compiled noise", name, [run], least))
    return found


def _layer(
    leaves: list[Tensor], dy: Tensor, variant: str, backend: str, least: dict[str, Work], options: Options
) -> Contender:
    """Our layer; as a baseline where `backend` is "library"."""
    role = "library" if backend == "library" and "library" not in options.backends else "wat"
    noise = NOISES[variant]
    outputs, inputs = leaves[1].shape
    call = dispatch.Call(
        torch.device(options.device).type, options.dtype, in_channels=inputs, out_channels=outputs, noise=noise.code,
        rows=len(dy),
    )  # fmt: skip
    try:
        chosen = dispatch.choose("shadow_linear", BACKENDS, backend, dispatch.environment(), call)
    except RuntimeError as error:
        return Contender(role, "WATLinear", variant, backend=backend, missing=str(error))

    def forward() -> Tensor:
        return shadow_linear(*leaves, key=draw_key(dy.device), noise=noise, backend=chosen)

    def check() -> None:
        check_layer(
            lambda *tensors: shadow_linear(*tensors, key=_CHECK_KEY, noise=noise, backend=chosen),
            lambda *tensors: shadow_linear(*tensors, key=_CHECK_KEY, noise=noise, backend="reference"),
            leaves,
            dy,
        )

    run = Run(layer_modes(forward, leaves, dy), check=check, saved=lambda: saved_bytes(forward, leaves))
    return Contender(role, "WATLinear", variant, [run], least, chosen)


def _torch_run(function: Callable[..., Tensor], leaves: list[Tensor], dy: Tensor, compiled: bool = False) -> Run:
    def forward() -> Tensor:
        return function(*leaves)

    return Run(layer_modes(forward, leaves, dy, compiled), saved=lambda: saved_bytes(forward, leaves))


def work(shape: Shape, dtype: torch.dtype) -> dict[str, Work]:
    """Every tensor read or written once; drawing noise counts nothing."""
    flops = 2.0 * shape.rows * shape.inputs * shape.outputs
    x, y, weights = shape.rows * shape.inputs, shape.rows * shape.outputs, shape.inputs * shape.outputs
    forward = Work(flops, dtype.itemsize * (x + weights + y))
    backward = Work(2 * flops, dtype.itemsize * (2 * x + 2 * weights + y))
    return {
        "forward": forward,
        "backward": backward,
        "full": Work(forward.flops + backward.flops, forward.bytes + backward.bytes),
    }
