"""RandomHorizontalFlip and RandomVerticalFlip."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wat_kernels.tap_table import TapTable
from watnn.transforms import functional
from watnn.transforms.base import GridTransform, MatrixRow
from watnn.transforms.checks import check_probability


@dataclass(frozen=True, repr=False)
class RandomHorizontalFlip(GridTransform):
    """Mirror the kernel left and right with probability p."""

    p: float = 0.5

    def __post_init__(self):
        object.__setattr__(self, "p", check_probability("p", self.p))

    def _build_table(self, size: tuple[int, int]) -> TapTable:
        return _flip_table(size, functional.hflip(size), self.p)

    def _matrix_rows(self) -> list[tuple[float, MatrixRow]]:
        return [(1 - self.p, MatrixRow()), (self.p, MatrixRow(flip_in=True))]


@dataclass(frozen=True, repr=False)
class RandomVerticalFlip(GridTransform):
    """Mirror the kernel top and bottom with probability p."""

    p: float = 0.5

    def __post_init__(self):
        object.__setattr__(self, "p", check_probability("p", self.p))

    def _build_table(self, size: tuple[int, int]) -> TapTable:
        return _flip_table(size, functional.vflip(size), self.p)

    def _matrix_rows(self) -> list[tuple[float, MatrixRow]]:
        return [(1 - self.p, MatrixRow()), (self.p, MatrixRow(flip_out=True))]


def _flip_table(size: tuple[int, int], flipped: Tensor, p: float) -> TapTable:
    return TapTable(torch.stack([torch.eye(math.prod(size)), flipped]), [1 - p, p], size)
