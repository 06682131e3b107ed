"""Grid transforms of a whole Linear weight: translation and flips as index arithmetic.

A Linear weight is an (out, in) image. Moving and mirroring it needs no arithmetic on its numbers, so a draw is four
integers and a kernel reads the plain weight at other addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wat_kernels import torch_func
from wat_kernels.default_device import on_cpu
from wat_kernels.law import check_probabilities, thresholds_of
from wat_kernels.row_op import row_words

_FRACTION_BITS = 16  # of a maximal shift in a row
_LARGEST_SHIFT = 2**22  # 2 * M * (a 24-bit number) then still fits an int64


class MatrixGridTensors(NamedTuple):
    """What a kernel reads, on one device.

    thresholds: (R,) int64, cumulative probability in units of 2**-32; a draw u takes row `number of thresholds <= u`
    rows:       (R, 4) int64, [flip_out, flip_in, M_out, M_in], M = round(max_shift * 2**16)
    """

    thresholds: Tensor
    rows: Tensor


class MatrixGrid:
    """R ways to move an (out, in) matrix, with R probabilities.

    A draw takes a row, then a shift along each axis, uniform over [-max_shift, max_shift] and rounded to an integer:

        A[o, i] = PW[o - shift_out, i - shift_in], 0 outside;  SW = A, mirrored along `out` and `in` where the row says

    rows:          (R, 4) integers [flip_out, flip_in, M_out, M_in]: flips 0 or 1, M = round(max_shift * 2**16) >= 0
    probabilities: (R,), non-negative, summing to one
    shape:         (out, in) it was made for, where that is known
    Equal rows are merged and rows of probability zero dropped. Immutable; the tensors on each device are made once.
    Raises ValueError when a row or a probability is not what it must be.
    """

    @on_cpu
    def __init__(
        self,
        rows: Tensor | Sequence[Sequence[int]],
        probabilities: Tensor | Sequence[float],
        shape: tuple[int, int] | None = None,
    ):
        rows = _checked_rows(rows)
        probabilities = check_probabilities(probabilities, len(rows))
        self.shape = None if shape is None else (int(shape[0]), int(shape[1]))
        merged: dict[tuple[int, ...], float] = {}
        for row, probability in zip(rows.tolist(), probabilities.tolist(), strict=True):
            if probability > 0:
                merged[tuple(row)] = merged.get(tuple(row), 0.0) + probability
        self.rows = torch.tensor(list(merged))
        self.probabilities = torch.tensor(list(merged.values()), dtype=torch.float64)
        self.thresholds = thresholds_of(self.probabilities)
        self._on_device = {torch.device("cpu"): MatrixGridTensors(self.thresholds, self.rows)}
        self._hash = hash((self.shape, tuple(self.rows.flatten().tolist()), tuple(self.probabilities.tolist())))

    def on(self, device: torch.device) -> MatrixGridTensors:
        """The tensors that kernels read, on `device`; copied there once and kept."""
        tensors = self._on_device.get(device)
        if tensors is None:
            with torch_func.suspended():
                tensors = MatrixGridTensors(self.thresholds.to(device), self.rows.to(device))
            self._on_device[device] = tensors
        return tensors

    @property
    def is_identity(self) -> bool:
        return not self.rows.any()

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, MatrixGrid)
            and self.shape == other.shape
            and torch.equal(self.rows, other.rows)
            and torch.equal(self.probabilities, other.probabilities)
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        shape = "" if self.shape is None else f", shape={self.shape}"
        return f"MatrixGrid({self.rows.tolist()}, {self.probabilities.tolist()}{shape})"

    def __reduce__(self):
        return type(self), (self.rows, self.probabilities, self.shape)

    def __deepcopy__(self, memo: dict[int, Any]) -> MatrixGrid:
        return self  # immutable


def draw_matrix_grid(thresholds: Tensor, rows: Tensor, key: Tensor, shadows: int) -> tuple[Tensor, ...]:
    """What each shadow does with the matrix: (flip_out, flip_in, shift_out, shift_in), each (shadows,) int64.

    thresholds: (R,) int64; rows: (R, 4) int64; key: () int64
    Of the words of the row draw, 0 gives the row, the upper 24 bits of 1 and 2 the shifts along `out` and `in`.
    """
    word_row, word_out, word_in, _ = row_words(key, shadows)
    row = rows[(word_row.unsqueeze(1) >= thresholds).sum(1)]  # (S, 4)
    flip_out, flip_in, max_out, max_in = row.unbind(1)
    return flip_out, flip_in, _shift(max_out, word_out), _shift(max_in, word_in)


@on_cpu
def mean_inside(rows: Tensor, probabilities: Tensor, shape: Sequence[int]) -> float:
    """How many elements of an (out, in) matrix stay inside on average over the draws.

    rows: (R, 4) int64; probabilities: (R,)
    """
    inside = [
        _mean_lines_inside(shape[0], m_out) * _mean_lines_inside(shape[1], m_in) for m_out, m_in in rows[:, 2:].tolist()
    ]
    return sum(p * n for p, n in zip(probabilities.tolist(), inside, strict=True))


def _mean_lines_inside(size: int, maximum: int) -> float:
    """Of `size` lines, those that a shift of up to `maximum` * 2**-16 leaves inside, on average."""
    limit = maximum / 2**_FRACTION_BITS
    if limit == 0:
        return float(size)
    shift = torch.arange(1, int(limit + 0.5) + 1, dtype=torch.float64)
    # a shift that rounds to s is one in [s - 1/2, s + 1/2]; both signs are equally likely
    probability = ((shift + 0.5).clamp(max=limit) - (shift - 0.5)) / limit
    return float(size - (probability * shift.clamp(max=size)).sum())


def _shift(maximum: Tensor, word: Tensor) -> Tensor:
    """round(uniform(-maximum, maximum)) in integers: the fixed-point number 2 * M * u - M, a half added, floored."""
    fixed = ((2 * maximum * (word >> 8)) >> 24) - maximum
    return (fixed + (1 << (_FRACTION_BITS - 1))) >> _FRACTION_BITS


def _checked_rows(rows: Tensor | Sequence[Sequence[int]]) -> Tensor:
    rows = torch.as_tensor(rows)
    if rows.ndim != 2 or rows.shape[1] != 4 or len(rows) == 0 or rows.is_floating_point() or rows.dtype == torch.bool:
        raise ValueError(f"rows is {rows.dtype} of shape {tuple(rows.shape)}; accepted is integers of shape (rows, 4)")
    rows = rows.detach().to("cpu", torch.int64)
    if not ((rows[:, :2] == 0) | (rows[:, :2] == 1)).all():
        raise ValueError(f"rows has flips {rows[:, :2].tolist()}; accepted is 0 or 1")
    if (rows[:, 2:] < 0).any() or (rows[:, 2:] >= _LARGEST_SHIFT << _FRACTION_BITS).any():
        raise ValueError(
            f"rows has maximal shifts {(rows[:, 2:] / 2**_FRACTION_BITS).tolist()}; "
            f"accepted is 0 to {_LARGEST_SHIFT - 1} rows or columns"
        )
    return rows
