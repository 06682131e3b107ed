"""Elementwise noise: MultiplicativeNoise and DropConnect."""

from __future__ import annotations

from dataclasses import dataclass

from wat_kernels.noise import Noise
from watnn.transforms.base import ElementwiseNoise
from watnn.transforms.checks import check_number


@dataclass(frozen=True, repr=False)
class MultiplicativeNoise(ElementwiseNoise):
    """Multiply each weight by 1 + std * z, z standard normal (DAMP, arXiv 2406.16540)."""

    std: float

    def __post_init__(self):
        object.__setattr__(self, "std", check_number("std", self.std, low=0))

    @property
    def noise(self) -> Noise:
        return Noise("multiplicative", self.std)


@dataclass(frozen=True, repr=False)
class DropConnect(ElementwiseNoise):
    """Set each weight to zero with probability p, 0 <= p < 1, and multiply those that stay by 1 / (1 - p)."""

    p: float

    def __post_init__(self):
        object.__setattr__(self, "p", check_number("p", self.p, low=0))
        if self.p >= 1:
            raise ValueError(f"p={self.p!r}; accepted is a probability 0 <= p < 1")

    @property
    def noise(self) -> Noise:
        return Noise("dropconnect", self.p)
