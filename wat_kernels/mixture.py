"""Laws mixed with the identity: a transform whose strength changes without anything being built again.

With strength a, a draw is one of the transform with probability a and the identity else. The rows stay where they are;
only the thresholds change, in place. So a compiled graph and a captured CUDA graph follow, and with strength 1 a key
draws what it drew before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wat_kernels.default_device import on_cpu
from wat_kernels.matrix_grid import MatrixGrid, MatrixGridTensors
from wat_kernels.tap_table import TableTensors, TapTable, _to_ell

if TYPE_CHECKING:
    from typing_extensions import Self


def check_strength(strength: float) -> float:
    """`strength` as a float; TypeError for what is no number, ValueError outside [0, 1]."""
    if isinstance(strength, bool) or not isinstance(strength, Real):
        raise TypeError(f"strength={strength!r}; accepted is a number from 0 to 1")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength!r}; accepted is a number from 0 to 1")
    return float(strength)


class _Mixture:
    """What a mixed table and a mixed grid share: the law of their rows, of which one is the identity.

    Unlike what they are made of they change, so two are equal only if they are one, and a copy is another one.
    """

    of: Any  # what is mixed with the identity
    _on_device: dict[torch.device, Any]

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _set_up_law(self, probabilities: Tensor, identity: int, strength: float) -> None:
        """probabilities: (R,) of the rows at strength 1; identity: the row, R if it is yet to be added."""
        added = probabilities.new_zeros(int(identity == len(probabilities)))
        self._identity = identity
        self._full = torch.cat((probabilities, added))  # (R,) or (R + 1,)
        self._cumulative = self._full.cumsum(0)
        self._cumulative[len(probabilities) - 1 :] = 1.0  # exactly, as in thresholds_of
        self._strength = math.nan  # unlike every strength
        self.strength = strength

    @property
    def strength(self) -> float:
        """The probability with which a draw is one of the transform; assign to change it, on all devices at once."""
        return self._strength

    @strength.setter
    @on_cpu
    def strength(self, strength: float) -> None:
        strength = check_strength(strength)
        if strength == self._strength:
            return
        self._strength = strength
        self.probabilities = strength * self._full
        self.probabilities[self._identity] += 1 - strength
        # at strength 1 the thresholds of the law itself, to the bit
        cumulative = strength * self._cumulative
        cumulative[self._identity :] += 1 - strength
        thresholds = (cumulative * 2.0**32).round_().to(torch.int64)
        with torch.inference_mode():  # where a tensor made under inference_mode may be written too
            for tensors in self._on_device.values():
                tensors.thresholds.copy_(thresholds)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.of!r}, strength={self.strength:g})"

    def __reduce__(self) -> tuple[Callable, tuple[Any, ...]]:
        return type(self), (self.of, self.strength)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        make, arguments = self.__reduce__()
        return make(*arguments)


class MixedTable(_Mixture, TapTable):
    """A tap table mixed with the identity.

    of:       the table at strength 1. Where it has no identity row, one is added behind its own
    strength: 0 <= strength <= 1, see `strength`
    `.probabilities` are those of the present strength. Raises TypeError or ValueError for another strength.
    """

    @on_cpu
    def __init__(self, of: TapTable, strength: float = 1.0):
        self.of, self.kernel_size = of, of.kernel_size
        eye = torch.eye(of.maps.shape[1]).unsqueeze(0)
        identity = _first((of.maps == eye).flatten(1).all(1))
        cpu = of.on(torch.device("cpu"))
        self.maps, taps, taps_t = of.maps, cpu.taps, cpu.taps_t
        if identity == len(of):
            self.maps = torch.cat((of.maps, eye))
            taps, taps_t = _to_ell(self.maps), _to_ell(self.maps.mT)
        thresholds = torch.empty(len(self.maps), dtype=torch.int64)
        self._on_device = {torch.device("cpu"): TableTensors(thresholds, taps, taps_t)}
        self._set_up_law(of.probabilities, identity, strength)

    def on(self, device: torch.device) -> TableTensors:
        """As TapTable.on, with thresholds of the present strength that do not change with it: a backward pass draws what
        its forward drew."""
        tensors = super().on(device)
        return TableTensors(tensors.thresholds.clone(), tensors.taps, tensors.taps_t)


class MixedGrid(_Mixture, MatrixGrid):
    """A matrix grid mixed with the identity; arguments and attributes as those of MixedTable."""

    @on_cpu
    def __init__(self, of: MatrixGrid, strength: float = 1.0):
        self.of, self.shape = of, of.shape
        identity = _first((of.rows == 0).all(1))
        self.rows = of.rows if identity < len(of) else torch.cat((of.rows, of.rows.new_zeros(1, 4)))
        self.thresholds = torch.empty(len(self.rows), dtype=torch.int64)
        self._on_device = {torch.device("cpu"): MatrixGridTensors(self.thresholds, self.rows)}
        self._set_up_law(of.probabilities, identity, strength)

    def on(self, device: torch.device) -> MatrixGridTensors:
        """As MixedTable.on."""
        tensors = super().on(device)
        return MatrixGridTensors(tensors.thresholds.clone(), tensors.rows)


def _first(rows: Tensor) -> int:
    """The first row that is True, or how many rows there are."""
    return next(iter(rows.nonzero().flatten().tolist()), len(rows))
