"""The contenders of one shape of convolution: our layer, nn.Conv2d, the official pipeline, torch.compile of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wat_kernels import TapTable, dispatch, draw_key, shadow_conv2d
from wat_kernels.ops.conv2d import BACKENDS
from watnn.bench import official
from watnn.bench.case import Contender, Options, Run, Work, layer_modes
from watnn.bench.memory import saved_bytes
from watnn.bench.verify import check_layer
from watnn.transforms import GridTransform, Identity, RandomAffine, RandomResizedCrop, functional

TRANSFORMS: dict[str, GridTransform] = {
    "translate": RandomAffine(0, translate=(official.TRANSLATE, official.TRANSLATE)),
    "resized_crop": RandomResizedCrop(scale=official.CROP_SCALE),
    "identity": Identity(),
}
LAYER, PLAIN = "WATConv2d", "nn.Conv2d"
PIPELINE, COMPILED = "torchvision pipeline", "compiled pipeline"


class Shape(NamedTuple):
    """A convolution with as many input as output channels, stride 1 and padding that keeps the size."""

    channels: int
    image: int
    kernel: int = 3
    batch: int = 16
    depthwise: bool = False

    def __str__(self) -> str:
        return f"{self.channels}ch {self.image}x{self.image} k{self.kernel} batch {self.batch}"

    @property
    def groups(self) -> int:
        return self.channels if self.depthwise else 1

    @property
    def padding(self) -> int:
        return self.kernel // 2


class Tensors(NamedTuple):
    """x, dy: (N, C, H, W) channels_last; weight: (C, C / groups, k, k); bias: (C,); gain: (). All but dy need gradients."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    gain: Tensor
    dy: Tensor

    @classmethod
    def of(cls, shape: Shape, device: str, dtype: torch.dtype) -> Tensors:
        generator = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(device, dtype)

        activations = (shape.batch, shape.channels, shape.image, shape.image)
        x, dy = (normal(*activations).contiguous(memory_format=torch.channels_last) for _ in range(2))
        inputs = shape.channels // shape.groups
        weight = normal(shape.channels, inputs, shape.kernel, shape.kernel) / (inputs * shape.kernel**2) ** 0.5
        gain = torch.tensor(1.25, device=device, dtype=dtype)  # exact in every dtype
        leaves = (tensor.requires_grad_() for tensor in (x, weight, normal(shape.channels), gain))
        return cls(*leaves, dy)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, self.weight, self.bias, self.gain]


def contenders(shape: Shape, variants: Sequence[str], options: Options) -> list[Contender]:
    """Everything that is measured for one shape, ours first.

    Our layer and the official one have a learnable scale, as in the paper. A contender that draws has one run for each
    draw where its cost depends on the draw, weighed by its probability.
    """
    tensors = Tensors.of(shape, options.device, options.dtype)
    tables = {name: TRANSFORMS[name].tap_table((shape.kernel, shape.kernel)) for name in variants}
    works = {name: work(shape, table, options.dtype) for name, table in tables.items()}
    found = [
        layer(shape, tensors, name, table, backend, options)
        for backend in options.backends
        for name, table in tables.items()
    ]
    if all(contender.backend != "library" for contender in found):
        found += [layer(shape, tensors, name, table, "library", options) for name, table in tables.items()]
    found.append(plain(shape, tensors, options))
    for name in variants:
        if name in _PIPELINES:
            found.append(_pipeline(shape, tensors, name, works[name], options, compiled=False))
            if options.compiled:
                found.append(_pipeline(shape, tensors, name, works[name], options, compiled=True))
    return found


def layer(
    shape: Shape,
    tensors: Tensors,
    variant: str,
    table: TapTable,
    backend: str,
    options: Options,
    shadows: int = 1,
) -> Contender:
    """Our layer: a run for each row of the table; as a baseline where `backend` is "library"."""
    role = "library" if backend == "library" and "library" not in options.backends else "wat"
    kernel = (shape.kernel, shape.kernel)
    call = dispatch.Call(
        torch.device(options.device).type, options.dtype, kernel, shape.channels, shape.channels, shape.groups
    )
    try:
        chosen = dispatch.choose("shadow_conv2d", BACKENDS, backend, dispatch.environment(), call)
    except RuntimeError as error:
        return Contender(role, LAYER, variant, backend=backend, missing=str(error))
    runs = [
        _layer_run(shape, tensors, TapTable(table.maps[row : row + 1], [1.0], kernel), float(p), chosen, shadows)
        for row, p in enumerate(table.probabilities)
    ]
    return Contender(role, LAYER, variant, runs, work(shape, table, options.dtype), chosen)


def _layer_run(
    shape: Shape, tensors: Tensors, table: TapTable, probability: float, backend: str, shadows: int
) -> Run:
    def call(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, key: Tensor | int, backend: str) -> Tensor:
        return shadow_conv2d(
            x, weight, bias, table=table, key=key, gain=gain, padding=shape.padding, groups=shape.groups,
            shadows=shadows, backend=backend,
        )  # fmt: skip

    def forward() -> Tensor:  # with the key that a layer draws; the table has one row, so the key decides nothing
        return call(*tensors.leaves, draw_key(tensors.x.device), backend)

    return Run(
        layer_modes(forward, tensors.leaves, tensors.dy),
        probability,
        lambda: check_layer(
            lambda *leaves: call(*leaves, 0, backend),
            lambda *leaves: call(*leaves, 0, "reference"),
            tensors.leaves,
            tensors.dy,
        ),
        lambda: saved_bytes(forward, tensors.leaves),
    )


def plain(shape: Shape, tensors: Tensors, options: Options) -> Contender:
    leaves = [tensors.x, tensors.weight, tensors.bias]

    def forward() -> Tensor:
        return F.conv2d(*leaves, padding=shape.padding, groups=shape.groups)

    run = Run(layer_modes(forward, leaves, tensors.dy), saved=lambda: saved_bytes(forward, leaves))
    every_tap = TapTable.identity((shape.kernel, shape.kernel))
    return Contender("plain", PLAIN, "", [run], work(shape, every_tap, options.dtype))


class _Pipeline(NamedTuple):
    """How a transform of the weight is drawn and applied, eagerly and for the compiler; and a draw with its tap map."""

    draw: Callable[[int, torch.device], object]
    apply: Callable[[Tensor, object], Tensor]
    traced_draw: Callable[[int, torch.device], object]
    traced_apply: Callable[[Tensor, object], Tensor]
    example: Callable[[int, torch.device], tuple[object, object, Tensor]]


_PIPELINES: dict[str, _Pipeline] = {
    "translate": _Pipeline(
        lambda size, device: official.draw_shift(size),
        official.translated,
        official.traced_draw_shift,
        official.traced_translated,
        lambda size, device: (
            (1, 0), torch.tensor([1.0, 0.0], device=device), functional.affine(size, 0.0, (1, 0), 1.0, 0.0)
        ),
    ),
    "resized_crop": _Pipeline(
        lambda size, device: official.draw_box(size),
        official.resized_crop,
        lambda size, device: official.draw_box(size),
        official.resized_crop,
        lambda size, device: (
            (0, 1, size, size - 1), (0, 1, size, size - 1), functional.resized_crop(size, 0, 1, size, size - 1)
        ),
    ),
}  # fmt: skip


def _pipeline(
    shape: Shape, tensors: Tensors, variant: str, least: Mapping[str, Work], options: Options, compiled: bool
) -> Contender:
    """The official pipeline, each call with a fresh draw."""
    pipeline = _PIPELINES[variant]
    device = tensors.x.device
    draw, apply = (pipeline.traced_draw, pipeline.traced_apply) if compiled else (pipeline.draw, pipeline.apply)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, drawn: object) -> Tensor:
        return F.conv2d(x, apply(weight, drawn) * gain, bias, padding=shape.padding, groups=shape.groups)

    if compiled:
        torch._dynamo.reset()  # the number of graphs of one function is limited, and each shape has its own
        convolve = torch.compile(convolve, dynamic=False)

    def forward() -> Tensor:
        return convolve(*tensors.leaves, draw(shape.kernel, device))

    def check() -> None:
        eager, traced, tap_map = pipeline.example(shape.kernel, device)
        table = TapTable(tap_map.unsqueeze(0), [1.0], (shape.kernel, shape.kernel))
        check_layer(
            lambda *leaves: convolve(*leaves, traced if compiled else eager),
            lambda x, weight, bias, gain: shadow_conv2d(
                x, weight, bias, table=table, key=0, gain=gain, padding=shape.padding, groups=shape.groups,
                backend="reference",
            ),
            tensors.leaves,
            tensors.dy,
        )  # fmt: skip

    run = Run(
        layer_modes(forward, tensors.leaves, tensors.dy),
        check=check,
        saved=lambda: saved_bytes(forward, tensors.leaves),
    )
    role, name = ("compiled", COMPILED) if compiled else ("official", PIPELINE)
    return Contender(role, name, variant, [run], least)


def work(shape: Shape, table: TapTable, dtype: torch.dtype) -> dict[str, Work]:
    """Multiply-adds of the active taps that meet the image, not its padding; every tensor read or written once."""
    size, pad, image = shape.kernel, shape.padding, shape.image
    meets = [sum(0 <= y - pad + tap < image for y in range(image)) for tap in range(size)]
    pixels = torch.tensor([[float(a * b) for b in meets] for a in meets]).flatten()  # (K,) outputs that a tap adds to
    active = table.maps.ne(0).any(2).double()  # (R, K)
    places = float(table.probabilities @ (active @ pixels.double()))
    flops = 2.0 * shape.batch * shape.channels * (shape.channels // shape.groups) * places
    activations = shape.batch * shape.channels * image**2
    weights = shape.channels * (shape.channels // shape.groups) * size**2
    forward = Work(flops, dtype.itemsize * (2 * activations + weights))
    backward = Work(2 * flops, dtype.itemsize * (3 * activations + 2 * weights))
    return {
        "forward": forward,
        "backward": backward,
        "full": Work(forward.flops + backward.flops, forward.bytes + backward.bytes),
    }
