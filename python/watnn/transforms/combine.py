"""Transforms of transforms: Identity, RandomChoice, RandomApply, Compose, and the paper's own choice, WAT."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from wat_kernels.noise import Noise
from wat_kernels.tap_table import TapTable
from watnn.transforms.affine import RandomAffine
from watnn.transforms.base import GridTransform, MatrixRow, Transform, _format
from watnn.transforms.checks import check_numbers, check_probability
from watnn.transforms.crop import RandomResizedCrop
from watnn.transforms.laws import quasi_random

_MAX_PRODUCT_ROWS = 4096
_SAMPLED_PRODUCT_ROWS = 1024


@dataclass(frozen=True, repr=False)
class Identity(GridTransform):
    """SW = PW."""

    @property
    def grid(self) -> None:
        return None

    def _build_table(self, size: tuple[int, int]) -> TapTable:
        return TapTable.identity(size)

    def _matrix_rows(self) -> list[tuple[float, MatrixRow]]:
        return [(1.0, MatrixRow())]


@dataclass(frozen=True, repr=False)
class RandomChoice(GridTransform):
    """One of several grid transforms: the weighted union of their tables.

    p: the probability of each, summing to one; equal by default
    """

    transforms: Sequence[GridTransform]
    p: Sequence[float] | None = None

    def __post_init__(self):
        object.__setattr__(self, "transforms", _checked_grids(type(self).__name__, self.transforms))
        if self.p is not None:
            p = check_numbers("p", self.p, len(self.transforms), low=0, high=1)
            if abs(sum(p) - 1) > 1e-6:
                raise ValueError(f"p={self.p!r} sums to {sum(p):g}; accepted is probabilities that sum to 1")
            object.__setattr__(self, "p", p)

    def __repr__(self) -> str:
        p = "" if self.p is None else f", p={_format(self.p)}"
        return f"RandomChoice({list(self.transforms)!r}{p})"

    @property
    def _weights(self) -> Sequence[float]:
        return self.p or [1 / len(self.transforms)] * len(self.transforms)

    def _build_table(self, size: tuple[int, int]) -> TapTable:
        return TapTable.union([transform.tap_table(size) for transform in self.transforms], self._weights)

    def _matrix_rows(self) -> list[tuple[float, MatrixRow]]:
        pairs = zip(self._weights, self.transforms, strict=True)
        return [(weight * p, row) for weight, transform in pairs for p, row in transform._matrix_rows()]


@dataclass(frozen=True, repr=False)
class RandomApply(GridTransform):
    """A grid transform, or several one after the other, with probability p; else nothing."""

    transforms: Sequence[GridTransform] | GridTransform
    p: float = 0.5

    def __post_init__(self):
        transforms = (self.transforms,) if isinstance(self.transforms, Transform) else self.transforms
        object.__setattr__(self, "transforms", _checked_grids(type(self).__name__, transforms))
        object.__setattr__(self, "p", check_probability("p", self.p))

    def __repr__(self) -> str:
        return f"RandomApply({list(self._several)!r}, p={_format(self.p)})"

    @property
    def _several(self) -> tuple[GridTransform, ...]:
        """What __post_init__ has made of `transforms`."""
        return cast("tuple[GridTransform, ...]", self.transforms)

    def _build_table(self, size: tuple[int, int]) -> TapTable:
        applied = Compose(self._several).tap_table(size)
        return TapTable.union([applied, TapTable.identity(size)], [self.p, 1 - self.p])

    def _matrix_rows(self) -> list[tuple[float, MatrixRow]]:
        applied = Compose(self._several)._matrix_rows()
        return [*((self.p * p, row) for p, row in applied), (1 - self.p, MatrixRow())]


@dataclass(frozen=True, repr=False)
class Compose(GridTransform):
    """Grid transforms one after the other, the first first, and at most one noise, last.

    The table is the product of the tables. Where a product would have more than 4096 rows it is sampled instead: 1024
    points of a fixed two-dimensional Sobol sequence, each a pair of rows taken by their cumulative probabilities.
    """

    transforms: Sequence[Transform]

    def __post_init__(self):
        transforms = _checked_transforms("Compose", self.transforms)
        for index, transform in enumerate(transforms[:-1]):
            if transform.noise is not None:
                raise ValueError(
                    f"transforms[{index}]={transform!r} has noise and {transforms[index + 1]!r} follows it; "
                    "accepted is at most one noise, last"
                )
        object.__setattr__(self, "transforms", transforms)

    def __repr__(self) -> str:
        return f"Compose({list(self.transforms)!r})"

    @property
    def grid(self) -> GridTransform | None:
        grids = [transform.grid for transform in self.transforms if transform.grid is not None]
        if len(grids) <= 1:
            return grids[0] if grids else None
        return self if tuple(grids) == self.transforms else Compose(grids)

    @property
    def noise(self) -> Noise | None:
        return self.transforms[-1].noise

    def _build_table(self, size: tuple[int, int]) -> TapTable:
        tables = [transform.grid.tap_table(size) for transform in self.transforms if transform.grid is not None]
        return functools.reduce(_product, tables) if tables else TapTable.identity(size)

    def _matrix_rows(self) -> list[tuple[float, MatrixRow]]:
        rows = [(1.0, MatrixRow())]
        for transform in self.transforms:
            if transform.grid is not None:
                after = transform.grid._matrix_rows()
                rows = [(p * q, self._joined(row, next_row)) for p, row in rows for q, next_row in after]
        return rows

    def _joined(self, first: MatrixRow, then: MatrixRow) -> MatrixRow:
        # a shift is as likely as the opposite one, so whether it comes before or after a flip is all the same
        if (first.fraction_out and then.fraction_out) or (first.fraction_in and then.fraction_in):
            raise ValueError(f"{self!r} translates twice; accepted for a Linear weight is at most one translation")
        return MatrixRow(
            first.flip_out != then.flip_out,
            first.flip_in != then.flip_in,
            first.fraction_out + then.fraction_out,
            first.fraction_in + then.fraction_in,
        )


def WAT() -> RandomChoice:
    """The choice of the paper (arXiv 2405.19590): translation by up to 0.3, or a resized crop of 0.8 to 1.0."""
    return RandomChoice([RandomAffine(degrees=0, translate=(0.3, 0.3)), RandomResizedCrop(scale=(0.8, 1.0))])


def _product(first: TapTable, after: TapTable) -> TapTable:
    if len(first) * len(after) <= _MAX_PRODUCT_ROWS:
        return first.then(after)
    points = quasi_random(_SAMPLED_PRODUCT_ROWS, 2).T.contiguous()
    rows = [
        torch.searchsorted(table.probabilities.cumsum(0), point).clamp(max=len(table) - 1)
        for table, point in zip((first, after), points, strict=True)
    ]
    maps = after.maps[rows[1]].double() @ first.maps[rows[0]].double()
    return TapTable(maps, [1 / len(maps)] * len(maps), first.kernel_size)


def _checked_transforms(owner: str, transforms: object) -> tuple[Transform, ...]:
    if not isinstance(transforms, Sequence) or isinstance(transforms, str):
        raise TypeError(f"transforms={transforms!r}; accepted by {owner} is a sequence of transforms")
    if not transforms:
        raise ValueError(f"transforms={transforms!r} is empty; accepted by {owner} is at least one transform")
    for index, transform in enumerate(transforms):
        if not isinstance(transform, Transform):
            raise TypeError(
                f"transforms[{index}]={transform!r}; accepted by {owner} is a transform of watnn.transforms; "
                "wrap any other callable in FromCallable"
            )
    return tuple(transforms)


def _checked_grids(owner: str, transforms: object) -> tuple[GridTransform, ...]:
    checked = _checked_transforms(owner, transforms)
    for index, transform in enumerate(checked):
        if transform.noise is not None:
            raise ValueError(
                f"transforms[{index}]={transform!r} has noise; accepted by {owner} is grid transforms: "
                "put the noise last in a Compose around it"
            )
    return cast("tuple[GridTransform, ...]", checked)  # what has no noise is one
