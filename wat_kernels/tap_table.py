"""Tap tables: a random transform of k x k filters as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wat_kernels import torch_func
from wat_kernels.default_device import on_cpu
from wat_kernels.law import check_probabilities, thresholds_of


class TableTensors(NamedTuple):
    """What a kernel reads of a table, on one device. `taps` and `taps_t` are M and its transpose in ELL form.

    thresholds: (R,) int64, cumulative probability in units of 2**-32; a draw u takes row `number of thresholds <= u`
    taps:       (R, 1 + K + 2 * K * E) int32, one line per row of the table:
                    [n, output tap x K, input tap x K x E, coefficient (fp32 bits) x K x E]
                n active output taps come first, in ascending order; unused places hold tap 0 and coefficient 0
    taps_t:     the same for the transpose: input taps that reach an output, and the outputs they reach
    """

    thresholds: Tensor
    taps: Tensor
    taps_t: Tensor


class TapTable:
    """R tap maps with R probabilities (a transform compiled for one kernel size).

    maps:          (R, K, K), K = kh * kw, or as many as there are taps in 1 or 3 dimensions: `SW[o, i, t] = sum_p maps[row, t, p] * PW[o, i, p]`
    probabilities: (R,), non-negative, summing to one
    kernel_size:   (kh, kw), (k,) or (kd, kh, kw) where it is known; then a layer of another kernel size is refused, also when K agrees

    Equal maps are merged and rows of probability zero dropped, so `.maps` may be shorter than what was given. A table
    is immutable; its tensors on each device are made once and kept.
    Raises TypeError or ValueError when a shape, a probability or a coefficient is not what it must be.
    """

    @on_cpu
    def __init__(
        self, maps: Tensor, probabilities: Tensor | Sequence[float], kernel_size: tuple[int, ...] | None = None
    ):
        maps = _checked_maps(maps)
        probabilities = check_probabilities(probabilities, len(maps))
        if kernel_size is not None and math.prod(kernel_size) != maps.shape[1]:
            raise ValueError(
                f"kernel_size={tuple(kernel_size)} has {math.prod(kernel_size)} taps, maps have {maps.shape[1]}"
            )
        self.kernel_size = None if kernel_size is None else tuple(int(size) for size in kernel_size)
        self.maps, self.probabilities = _merge_equal(maps, probabilities)
        tensors = TableTensors(thresholds_of(self.probabilities), _to_ell(self.maps), _to_ell(self.maps.mT))
        self._on_device = {torch.device("cpu"): tensors}
        self._hash = hash((self.kernel_size, self.maps.shape, tuple(self.probabilities.tolist())))

    @classmethod
    @on_cpu
    def identity(cls, kernel_size: tuple[int, ...]) -> TapTable:
        """The table with one row, SW = PW."""
        return cls(torch.eye(math.prod(kernel_size)).unsqueeze(0), [1.0], kernel_size)

    @classmethod
    @on_cpu
    def union(cls, tables: Sequence[TapTable], probabilities: Sequence[float]) -> TapTable:
        """One of `tables`, table i with probability probabilities[i]: the weighted union of their rows."""
        _check_same_taps(tables)
        weights = check_probabilities(probabilities, len(tables))
        maps = torch.cat([table.maps for table in tables])
        return cls(
            maps,
            torch.cat([w * table.probabilities for w, table in zip(weights, tables, strict=True)]),
            tables[0].kernel_size,
        )

    def then(self, after: TapTable) -> TapTable:
        """This table's transform, then independently `after`'s: all products of their maps."""
        _check_same_taps([self, after])
        maps = torch.einsum("btu,aup->abtp", after.maps.double(), self.maps.double())
        probabilities = self.probabilities[:, None] * after.probabilities
        return TapTable(maps.flatten(0, 1), probabilities.flatten(), self.kernel_size)

    def on(self, device: torch.device) -> TableTensors:
        """The tensors that kernels read, on `device`; copied there once and kept."""
        tensors = self._on_device.get(device)
        if tensors is None:
            cpu = self._on_device[torch.device("cpu")]
            with torch_func.suspended():
                tensors = TableTensors(*(tensor.to(device) for tensor in cpu))
            self._on_device[device] = tensors
        return tensors

    @property
    def active_taps(self) -> Tensor:
        """(R,) int64: output taps that each row computes."""
        return self.maps.ne(0).any(2).sum(1)

    @property
    def mean_active_taps(self) -> float:
        """Output taps that a forward computes on average."""
        return float(self.active_taps.double() @ self.probabilities)

    @property
    @on_cpu
    def is_identity(self) -> bool:
        return len(self) == 1 and torch.equal(self.maps[0], torch.eye(self.maps.shape[1]))

    def __len__(self) -> int:
        return len(self.maps)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TapTable)
            and self.kernel_size == other.kernel_size
            and torch.equal(self.maps, other.maps)
            and torch.equal(self.probabilities, other.probabilities)
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        size = "x".join(map(str, self.kernel_size)) if self.kernel_size else f"{self.maps.shape[1]} taps"
        return f"TapTable({size}, {len(self)} maps, {self.mean_active_taps:.2f} active taps on average)"

    def __reduce__(self):
        return type(self), (self.maps, self.probabilities, self.kernel_size)

    def __deepcopy__(self, memo: dict[int, Any]) -> TapTable:
        return self  # immutable


def _checked_maps(maps: Tensor) -> Tensor:
    maps = torch.as_tensor(maps)
    if maps.ndim != 3 or maps.shape[1] != maps.shape[2] or 0 in maps.shape:
        raise ValueError(f"maps has shape {tuple(maps.shape)}; accepted is (rows, K, K) with rows and K at least 1")
    if not maps.dtype.is_floating_point:
        raise TypeError(f"maps is {maps.dtype}; accepted is a floating-point tensor")
    if not maps.isfinite().all():
        raise ValueError("maps holds NaN or infinity; every coefficient must be finite")
    return maps.detach().to("cpu", torch.float64)


def _merge_equal(maps: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of distinct maps in order of first appearance, as fp32, with the summed probabilities of equal ones.

    Equal means within half of 1e-6 after rounding: products of transforms give the same map with other rounding errors.
    """
    rows_of: dict[bytes, list[int]] = {}
    for row, line in enumerate((maps * 1e6).round().to(torch.int64).numpy()):
        if probabilities[row] > 0:
            rows_of.setdefault(line.tobytes(), []).append(row)
    first = [rows[0] for rows in rows_of.values()]
    merged = torch.stack([probabilities[rows].sum() for rows in rows_of.values()])
    exact = maps[first]
    return torch.where(exact.abs() < 1e-6, 0.0, exact).float().contiguous(), merged


def _to_ell(maps: Tensor) -> Tensor:
    """(R, K, K) maps to the ELL lines that TableTensors describes."""
    rows, taps = maps.shape[:2]
    nonzero = maps.ne(0)
    per_output = nonzero.sum(2)  # (R, K)
    width = max(1, int(per_output.max()))
    # a stable sort on "is zero" brings the nonzeros of each line to the front and keeps their order
    order = nonzero.logical_not().to(torch.uint8).sort(dim=2, stable=True).indices[:, :, :width]  # (R, K, E)
    coefficients = maps.gather(2, order)
    active = per_output > 0
    outputs = active.logical_not().to(torch.uint8).sort(dim=1, stable=True).indices  # (R, K): active ones first
    by_output = outputs.unsqueeze(2).expand(-1, -1, width)
    inputs = order.gather(1, by_output)
    coefficients = coefficients.gather(1, by_output)
    inputs = torch.where(coefficients != 0, inputs, 0)
    count = active.sum(1, keepdim=True)
    outputs = torch.where(torch.arange(taps) < count, outputs, 0)
    bits = coefficients.float().contiguous().view(torch.int32)
    return torch.cat(
        [part.to(torch.int32).reshape(rows, -1) for part in (count, outputs, inputs, bits)], dim=1
    ).contiguous()


def identity_line(taps: int, width: int) -> Tensor:
    """The ELL form of the identity in a table of `width` entries for each output tap: (1, 1 + K + 2 * K * E) int32."""
    line = torch.zeros(1, 1 + taps + 2 * taps * width, dtype=torch.int32, device="cpu")
    every = torch.arange(taps, dtype=torch.int32, device="cpu")
    line[0, 0] = taps
    line[0, 1 : 1 + taps] = every
    line[0, 1 + taps : 1 + taps + taps * width : width] = every
    line[0, 1 + taps + taps * width :: width] = torch.ones(1, device="cpu").view(torch.int32)
    return line


def _check_same_taps(tables: Sequence[TapTable]) -> None:
    for table in tables[1:]:
        if table.maps.shape[1] != tables[0].maps.shape[1] or table.kernel_size != tables[0].kernel_size:
            raise ValueError(f"tables are for different kernels: {tables[0]!r} and {table!r}")
