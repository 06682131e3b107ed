"""The contenders of one shape of convolution: our layer, nn.Conv2d, the official pipeline, torch.compile of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wat_kernels import TapTable, dispatch, draw_key, shadow_conv2d
from wat_kernels.ops.conv import BACKENDS
from watnn.bench import official, pipeline
from watnn.bench.case import Contender, Options, Run, Work, layer_modes
from watnn.bench.memory import saved_bytes
from watnn.bench.shapes import Shape, Tensors
from watnn.bench.verify import along_output, check_layer
from watnn.transforms import GridTransform, Identity, RandomAffine, RandomResizedCrop

TRANSFORMS: dict[str, GridTransform] = {
    "translate": RandomAffine(0, translate=(official.TRANSLATE, official.TRANSLATE)),
    "resized_crop": RandomResizedCrop(scale=official.CROP_SCALE),
    "identity": Identity(),
}


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
        for compiled in (False, True) if options.compiled else (False,):
            if name in pipeline.VARIANTS:
                found.append(pipeline.pipeline(shape, tensors, name, tables[name], works[name], compiled))
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
        chosen = dispatch.choose("shadow_conv", BACKENDS, backend, dispatch.environment(), call)
    except RuntimeError as error:
        return Contender(role, "WATConv2d", variant, backend=backend, missing=str(error))
    runs = [
        _layer_run(shape, tensors, TapTable(table.maps[row : row + 1], [1.0], kernel), float(p), chosen, shadows)
        for row, p in enumerate(table.probabilities)
    ]
    return Contender(role, "WATConv2d", variant, runs, work(shape, table, options.dtype), chosen)


def _layer_run(shape: Shape, tensors: Tensors, table: TapTable, probability: float, backend: str, shadows: int) -> Run:
    def call(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, key: Tensor | int, backend: str) -> Tensor:
        return shadow_conv2d(
            x, weight, bias, table=table, key=key, gain=gain, padding=shape.padding, groups=shape.groups,
            shadows=shadows, backend=backend,
        )  # fmt: skip

    def forward() -> Tensor:  # with the key that a layer draws; the table has one row, so the key decides nothing
        return call(*tensors.leaves, draw_key(tensors.x.device), backend)

    def reference(*leaves: Tensor) -> Tensor:
        return call(*leaves, 0, "reference")

    def check() -> None:
        dy = along_output(reference, tensors.leaves)
        check_layer(lambda *leaves: call(*leaves, 0, backend), reference, tensors.leaves, dy)

    return Run(
        layer_modes(forward, tensors.leaves, tensors.dy),
        probability,
        check,
        lambda: saved_bytes(forward, tensors.leaves),
    )


def plain(shape: Shape, tensors: Tensors, options: Options) -> Contender:
    leaves = [tensors.x, tensors.weight, tensors.bias]

    def forward() -> Tensor:
        return F.conv2d(*leaves, padding=shape.padding, groups=shape.groups)

    run = Run(layer_modes(forward, leaves, tensors.dy), saved=lambda: saved_bytes(forward, leaves))
    every_tap = TapTable.identity((shape.kernel, shape.kernel))
    return Contender("plain", "nn.Conv2d", "", [run], work(shape, every_tap, options.dtype))


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
