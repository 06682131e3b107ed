"""RandomResizedCrop."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wat_kernels.tap_table import TapTable
from watnn.transforms import functional
from watnn.transforms.base import GridTransform
from watnn.transforms.checks import check_interpolation, check_range
from watnn.transforms.laws import crop_law


@dataclass(frozen=True, repr=False)
class RandomResizedCrop(GridTransform):
    """Cut a random rectangle out of the kernel and resize it to the kernel's size, as torchvision does an image.

    scale:         (low, high) of the rectangle's area as a fraction of the kernel's, above 0
    ratio:         (low, high) of its width / height, uniform in the logarithm, above 0
    interpolation: "nearest" or "bilinear"
    There is no `size`: it is the kernel's. The law is exact, ten tries and the fallback included.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"

    def __post_init__(self):
        object.__setattr__(self, "scale", check_range("scale", self.scale, above=0))
        object.__setattr__(self, "ratio", check_range("ratio", self.ratio, above=0))
        object.__setattr__(self, "interpolation", check_interpolation(self.interpolation))

    def _build_table(self, size: tuple[int, int]) -> TapTable:
        law = crop_law(size, self.scale, self.ratio)
        maps = [
            functional.resized_crop(size, top, left, height, width, self.interpolation)
            for _, top, left, height, width in law
        ]
        return TapTable(torch.stack(maps), [probability for probability, *_ in law], size)
