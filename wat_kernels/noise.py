"""The elementwise noise of a shadow weight, as the ops take it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from torch import Tensor

MULTIPLICATIVE = 1
DROP_CONNECT = 2
_CODES = {"multiplicative": MULTIPLICATIVE, "dropconnect": DROP_CONNECT}


@dataclass(frozen=True)
class Noise:
    """Each weight of the transformed kernel times its own random factor, a pure function of (key, shadow, element).

    kind:   "multiplicative": the factor is 1 + amount * z, z standard normal (DAMP, arXiv 2406.16540)
            "dropconnect":    the factor is 0 with probability `amount`, else 1 / (1 - amount)
    amount: the standard deviation, finite and >= 0, or the probability, 0 <= p < 1
    The factor has mean 1 in both, so that PW is the mean of SW.
    Raises TypeError for an amount that is no number, ValueError for an unknown kind or an amount out of range.
    """

    kind: str
    amount: float

    def __post_init__(self):
        if self.kind not in _CODES:
            raise ValueError(f"kind={self.kind!r}; accepted is 'multiplicative' or 'dropconnect'")
        if isinstance(self.amount, bool) or not isinstance(self.amount, Real):
            raise TypeError(f"amount={self.amount!r}; accepted is a number")
        object.__setattr__(self, "amount", float(self.amount))
        if self.kind == "multiplicative" and not (math.isfinite(self.amount) and self.amount >= 0):
            raise ValueError(f"amount={self.amount}; accepted for multiplicative noise is a finite number >= 0")
        if self.kind == "dropconnect" and not 0 <= self.amount < 1:
            raise ValueError(f"amount={self.amount}; accepted for dropconnect is a probability 0 <= p < 1")

    def scaled(self, strength: float) -> Noise:
        """The same noise with `strength` times the amount."""
        return Noise(self.kind, strength * self.amount)

    @property
    def code(self) -> int:
        """The kind as kernels take it: 1 multiplicative, 2 dropconnect; 0 stands for no noise."""
        return _CODES[self.kind]


@dataclass(frozen=True, eq=False)
class TensorNoise:
    """A Noise whose amount is data, for compiled graphs in which it changes: written in place, it compiles nothing again.

    amount: () float64 on the CPU, in the range of Noise.amount
    """

    kind: str
    amount: Tensor

    @property
    def code(self) -> int:
        return _CODES[self.kind]
