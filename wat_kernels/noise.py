"""Elementwise noise on SW, the second stage of a draw."""

from __future__ import annotations

import math
from dataclasses import dataclass

MULTIPLICATIVE = 1
DROP_CONNECT = 2
_CODES = {"multiplicative": MULTIPLICATIVE, "dropconnect": DROP_CONNECT}


@dataclass(frozen=True)
class Noise:
    """Independent noise on each element of SW, a pure function of (key, shadow, element).

    kind:   "multiplicative", SW * (1 + amount * z) with z standard normal (DAMP, arXiv 2406.16540), or
            "dropconnect", each element dropped with probability `amount`, the kept ones times 1 / (1 - amount)
    Raises ValueError for another kind, amount < 0, NaN or infinity, or a dropping probability of 1 or more.
    """

    kind: str
    amount: float

    def __post_init__(self):
        if self.kind not in _CODES:
            raise ValueError(f"kind={self.kind!r}; accepted are {', '.join(map(repr, _CODES))}")
        accepted = math.isfinite(self.amount) and self.amount >= 0
        if not accepted or (self.kind == "dropconnect" and self.amount >= 1):
            bound = "0 <= amount < 1" if self.kind == "dropconnect" else "a finite number >= 0"
            raise ValueError(f"amount={self.amount} of {self.kind} noise; accepted is {bound}")

    @property
    def code(self) -> int:
        """What ops take instead of the name: 1 multiplicative, 2 dropconnect (0 is no noise)."""
        return _CODES[self.kind]
