"""The official pipeline as contenders of a convolution: eager, and through torch.compile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wat_kernels import TapTable, shadow_conv2d
from watnn.bench import official
from watnn.bench.case import Contender, Run, Work, layer_modes
from watnn.bench.memory import saved_bytes
from watnn.bench.shapes import Shape, Tensors
from watnn.bench.verify import along_output, check_layer
from watnn.transforms import functional

VARIANTS = ("translate", "resized_crop")  # that there is a pipeline of


class _Draw(NamedTuple):
    """What one run of the pipeline applies to the weight.

    fresh:       draws, and gives what is applied in one timed call
    fixed:       what is applied where the result is checked, and tap_map (K, K) what that does to a kernel
    """

    fresh: Callable[[], object]
    fixed: object
    tap_map: Tensor
    probability: float


def pipeline(
    shape: Shape, tensors: Tensors, variant: str, table: TapTable, least: Mapping[str, Work], compiled: bool
) -> Contender:
    """The pipeline with the transform `variant`, whose tap table is `table`."""
    if variant == "translate":
        apply = official.traced_translated if compiled else official.translated
        draws = [_translation(shape.kernel, tensors.x.device, compiled)]
    else:
        apply, draws = official.resized_crop, _crops(shape.kernel, table)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, drawn: object) -> Tensor:
        return F.conv2d(x, apply(weight, drawn) * gain, bias, padding=shape.padding, groups=shape.groups)

    if compiled:
        torch._dynamo.reset()  # the number of graphs of one function is limited, and each shape has its own
        convolve = torch.compile(convolve, dynamic=False)
    role, name = ("compiled", "compiled pipeline") if compiled else ("official", "torchvision pipeline")
    return Contender(role, name, variant, [_run(shape, tensors, convolve, draw, compiled) for draw in draws], least)


def _run(shape: Shape, tensors: Tensors, convolve: Callable[..., Tensor], draw: _Draw, compiled: bool) -> Run:
    kernel = (shape.kernel, shape.kernel)

    def forward() -> Tensor:
        return convolve(*tensors.leaves, draw.fresh())

    def reference(x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor) -> Tensor:
        table = TapTable(draw.tap_map.unsqueeze(0), [1.0], kernel)
        return shadow_conv2d(
            x, weight, bias, table=table, key=0, gain=gain, padding=shape.padding, groups=shape.groups,
            backend="reference",
        )  # fmt: skip

    def check() -> None:
        dy = along_output(reference, tensors.leaves)
        check_layer(lambda *leaves: convolve(*leaves, draw.fixed), reference, tensors.leaves, dy)

    return Run(
        layer_modes(forward, tensors.leaves, tensors.dy, compiled),
        draw.probability,
        check,
        lambda: saved_bytes(forward, tensors.leaves),
    )


def _translation(size: int, device: torch.device, compiled: bool) -> _Draw:
    """Every call with its own shift: the cost does not depend on it."""
    tap_map = functional.affine(size, 0.0, (1, 0), 1.0, 0.0)
    if compiled:
        return _Draw(
            lambda: official.traced_draw_shift(size, device), torch.tensor([1.0, 0.0], device=device), tap_map, 1.0
        )
    return _Draw(lambda: official.draw_shift(size), (1, 0), tap_map, 1.0)


def _crops(size: int, table: TapTable) -> list[_Draw]:
    """One for each box, as the whole costs less than a part: a call draws, and applies its own box."""

    def redraw(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        official.draw_box(size)
        return box

    boxes = {}
    for height, width in itertools.product(range(1, size + 1), repeat=2):
        for top, left in itertools.product(range(size - height + 1), range(size - width + 1)):
            boxes[top, left, height, width] = functional.resized_crop(size, top, left, height, width)
    draws = []
    for row, probability in zip(table.maps, table.probabilities.tolist(), strict=True):
        box, tap_map = next((box, m) for box, m in boxes.items() if torch.allclose(m, row, atol=1e-5))
        draws.append(_Draw(lambda box=box: redraw(box), box, tap_map, probability))
    return draws
