"""TapDensity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wat_kernels.tap_table import TapTable
from watnn.transforms.base import GridTransform
from watnn.transforms.checks import check_number


@dataclass(frozen=True, repr=False)
class TapDensity(GridTransform):
    """Multiply each tap by a fixed number ("optimal weighted convolution").

    density: (kh, kw), a tensor or nested sequence of finite numbers, kept as nested tuples. It fits kernels of its own
    size only.
    """

    density: Sequence[Sequence[float]] | Tensor

    def __post_init__(self):
        rows = self.density
        if hasattr(rows, "tolist"):
            rows = rows.tolist()
        if not isinstance(rows, Sequence) or not all(isinstance(row, Sequence) for row in rows):
            raise TypeError(f"density={self.density!r}; accepted is a (kh, kw) tensor or nested sequence of numbers")
        if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
            raise ValueError(
                f"density={self.density!r}; accepted is (kh, kw) numbers, at least one, rows of one length"
            )
        checked = (
            tuple(check_number(f"density[{i}][{j}]", value) for j, value in enumerate(row))
            for i, row in enumerate(rows)
        )
        object.__setattr__(self, "density", tuple(checked))

    def _build_table(self, size: tuple[int, int]) -> TapTable:
        density = torch.tensor(self.density, dtype=torch.float64)
        if tuple(density.shape) != size:
            raise ValueError(
                f"kernel_size={size}; accepted is {tuple(density.shape)}, the size of the density of this TapDensity"
            )
        return TapTable(torch.diag(density.flatten()).unsqueeze(0), [1.0], size)
