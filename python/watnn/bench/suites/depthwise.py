"""The depthwise convolutions of MobileNetV2 and EfficientNet-Lite."""

from __future__ import annotations

from functools import partial

from watnn.bench.case import Case
from watnn.bench.convolution import contenders
from watnn.bench.shapes import Shape

_SIZES = [(192, 32, 3), (576, 16, 3), (672, 14, 5)]  # channels, image, kernel
_BATCHES = [128, 16]
_QUICK = [Shape(576, 16, 3, 16, depthwise=True)]


def cases() -> list[Case]:
    shapes = [Shape(*size, batch, depthwise=True) for size in _SIZES for batch in _BATCHES]
    return [
        Case("depthwise", str(shape), partial(contenders, shape, ("translate",)), quick=shape in _QUICK)
        for shape in shapes
    ]
