"""3x3 convolutions of VGG-like networks on CIFAR-sized images, and a forward so small that only the overhead is left."""

from __future__ import annotations

from functools import partial

from watnn.bench.case import Case
from watnn.bench.convolution import contenders
from watnn.bench.shapes import Shape

_SIZES = [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2)]  # channels, image
_BATCHES = [128, 16]
_VARIANTS = ("translate", "resized_crop", "identity")
SMALL = Shape(16, 8, batch=1)
_QUICK = [Shape(128, 16, batch=16)]


def cases() -> list[Case]:
    shapes = [Shape(channels, image, batch=batch) for channels, image in _SIZES for batch in _BATCHES]
    return [
        *(Case("conv", str(shape), partial(contenders, shape, _VARIANTS), quick=shape in _QUICK) for shape in shapes),
        Case("conv", str(SMALL), partial(contenders, SMALL, _VARIANTS), modes=("forward",)),
    ]
