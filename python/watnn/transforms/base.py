"""What every transform is: an immutable value that compiles itself, once per kernel size, to a tap table."""

from __future__ import annotations

import functools
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from wat_kernels.default_device import on_cpu
from wat_kernels.matrix_grid import MatrixGrid
from wat_kernels.noise import Noise
from wat_kernels.tap_table import TapTable
from watnn.transforms.checks import check_kernel_size, check_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Self


class Transform:
    """A random change of a layer's weight; the subclasses are frozen dataclasses: comparable, hashable, picklable."""

    @property
    def grid(self) -> GridTransform | None:
        """The part that acts on the grid of taps; None where there is none or it is the identity."""
        raise NotImplementedError

    @property
    def noise(self) -> Noise | None:
        """The elementwise noise that follows the grid part, or None."""
        raise NotImplementedError

    def plot(self, kernel_size: int | tuple[int, int] = 3) -> Figure:
        """A matplotlib figure of what this does to a kernel. Raises ImportError where matplotlib is missing."""
        from watnn.transforms.plotting import plot_noise, plot_table

        size = check_kernel_size(kernel_size)
        if self.grid is None and self.noise is not None:
            return plot_noise(repr(self), self.noise)
        table = TapTable.identity(size) if self.grid is None else self.grid.tap_table(size)
        return plot_table(repr(self), table, self.noise)

    def __repr__(self) -> str:
        """A call that makes an equal transform. Arguments at their default are left out."""
        parts = []
        for field in fields(cast(Any, self)):  # the subclasses are dataclasses
            value = getattr(self, field.name)
            if field.default is MISSING or value != field.default:
                parts.append(f"{field.name}={_format(value)}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def __copy__(self) -> Self:
        return self  # immutable

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class MatrixRow(NamedTuple):
    """One way to move an (out, in) matrix: flips, and the largest shift along each axis as a fraction of its length."""

    flip_out: bool = False
    flip_in: bool = False
    fraction_out: float = 0.0
    fraction_in: float = 0.0


class GridTransform(Transform):
    """A transform that is linear in the kernel and the same for all kernels of a layer: a random tap map."""

    @property
    def grid(self) -> GridTransform | None:
        return self

    @property
    def noise(self) -> Noise | None:
        return None

    def tap_table(self, kernel_size: int | tuple[int, int]) -> TapTable:
        """The tap maps and their probabilities on a (kh, kw) kernel; made once for equal transforms and sizes."""
        return _tap_table(self, check_kernel_size(kernel_size))

    def matrix_grid(self, shape: tuple[int, int]) -> MatrixGrid:
        """The same transform of the whole (out, in) weight of a Linear layer, as an image `in` wide and `out` high.

        Raises ValueError unless it is made of translations and flips.
        """
        return _matrix_grid(self, check_size("shape", shape))

    def _build_table(self, size: tuple[int, int]) -> TapTable:
        raise NotImplementedError

    def _matrix_rows(self) -> list[tuple[float, MatrixRow]]:
        """(probability, row) of each way to move a matrix."""
        raise ValueError(
            f"{self!r} does not apply to a Linear weight; accepted is RandomAffine(degrees=0, translate=...), "
            "RandomHorizontalFlip, RandomVerticalFlip, Identity, and RandomChoice, RandomApply or Compose of those"
        )


class ElementwiseNoise(Transform):
    """An independent random factor of mean one for each weight."""

    @property
    def grid(self) -> GridTransform | None:
        return None


@functools.lru_cache(maxsize=512)
@on_cpu
def _tap_table(transform: GridTransform, size: tuple[int, int]) -> TapTable:
    return transform._build_table(size)


@functools.lru_cache(maxsize=512)
@on_cpu
def _matrix_grid(transform: GridTransform, shape: tuple[int, int]) -> MatrixGrid:
    ways = transform._matrix_rows()
    rows = [
        [row.flip_out, row.flip_in, _fixed_point(row.fraction_out * shape[0]), _fixed_point(row.fraction_in * shape[1])]
        for _, row in ways
    ]
    return MatrixGrid(torch.tensor(rows, dtype=torch.int64), [probability for probability, _ in ways], shape)


def _fixed_point(max_shift: float) -> int:
    """The largest shift as MatrixGrid keeps it, in units of 2**-16."""
    return round(max_shift * 2**16)


def _format(value: object) -> str:
    if isinstance(value, tuple):
        inner = ", ".join(_format(entry) for entry in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return repr(int(value))
    return repr(value)
