"""Translation, rotation, scale and shear: RandomAffine and RandomRotation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import cast

import torch
from torch import Tensor

from wat_kernels.tap_table import TapTable
from watnn.transforms import functional
from watnn.transforms.base import GridTransform, MatrixRow, _format
from watnn.transforms.checks import (
    check_center,
    check_count,
    check_interpolation,
    check_numbers,
    check_range,
    check_symmetric_range,
)
from watnn.transforms.laws import maps_of_sources, quasi_random, rotation_law, shift_law

_MAX_EXACT_ROWS = 4096


@dataclass(frozen=True, repr=False)
class RandomAffine(GridTransform):
    """Rotate, scale, shear and translate the kernel about its middle, as torchvision's RandomAffine does an image.

    degrees:       a number d >= 0 for (-d, d), or (low, high); clockwise
    translate:     (a, b): dx = round(uniform(-a * kw, a * kw)) and dy = round(uniform(-b * kh, b * kh)); in [0, 1]
    scale:         (low, high), above 0
    shear:         a number or (low, high), degrees along x; or (low x, high x, low y, high y)
    interpolation: "nearest" or "bilinear"
    center:        (x, y) in taps from the upper left corner
    num_maps:      draws in the tap table where the law is not found by integration

    There is no `fill`: what comes in from outside is zero, because only then is the transform linear in the kernel.

    The law is exact where nothing but the translation varies, and where the angle varies too under "nearest"
    interpolation (unless that has more than 4096 maps). Otherwise the table holds `num_maps` points of a fixed Sobol
    sequence over the parameters that vary.
    """

    degrees: float | tuple[float, float]
    translate: tuple[float, float] | None = None
    scale: tuple[float, float] | None = None
    shear: float | tuple[float, ...] | None = None
    interpolation: str = "nearest"
    center: tuple[float, float] | None = None
    _: KW_ONLY
    num_maps: int = 256

    def __post_init__(self):
        put = object.__setattr__
        put(self, "degrees", check_symmetric_range("degrees", self.degrees))
        if self.translate is not None:
            put(self, "translate", check_numbers("translate", self.translate, 2, low=0, high=1))
        if self.scale is not None:
            put(self, "scale", check_range("scale", self.scale, above=0))
        if self.shear is not None:
            put(self, "shear", _checked_shear(self.shear))
        put(self, "interpolation", check_interpolation(self.interpolation))
        put(self, "center", check_center(self.center))
        put(self, "num_maps", check_count("num_maps", self.num_maps))

    def __repr__(self) -> str:
        return _repr_with_degrees(self)

    @property
    def _ranges(self) -> list[tuple[float, float]]:
        """(low, high) of the angle, the scale, and the shear along x and y."""
        shear = cast("tuple[float, ...] | None", self.shear) or ()
        low_x, high_x, low_y, high_y = (*shear, *(0.0,) * (4 - len(shear)))
        return [_low_high(self.degrees), self.scale or (1.0, 1.0), (low_x, high_x), (low_y, high_y)]

    def _build_table(self, size: tuple[int, int]) -> TapTable:
        (kh, kw), (fraction_x, fraction_y) = size, self.translate or (0.0, 0.0)
        shifts = [
            ((dx, dy), px * py)
            for dy, py in shift_law(fraction_y * kh).items()
            for dx, px in shift_law(fraction_x * kw).items()
        ]
        ranges = self._ranges
        varies = [low < high for low, high in ranges]
        if not any(varies):
            angle, scale, *shear = (low for low, _ in ranges)
            maps = [self._map(size, angle, shift, scale, shear) for shift, _ in shifts]
            return TapTable(torch.stack(maps), [probability for _, probability in shifts], size)
        if varies == [True, False, False, False] and self.interpolation == "nearest" and ranges[2:] == [(0.0, 0.0)] * 2:
            table = self._rotated(size, shifts, ranges[1][0])
            if table is not None:
                return table
        return self._sampled(size, ranges)

    def _rotated(
        self, size: tuple[int, int], shifts: list[tuple[tuple[int, int], float]], scale: float
    ) -> TapTable | None:
        """The exact law of a nearest-neighbour rotation at each shift; None where that has too many maps."""
        laws, rows = [], 0
        for shift, probability in shifts:
            sources, probabilities = rotation_law(size, self._ranges[0], self.center, shift, scale)
            laws.append((sources, probability * probabilities))
            rows += len(sources)
            if len(shifts) > 1 and rows > _MAX_EXACT_ROWS:
                return None
        sources, probabilities = (torch.cat(part) for part in zip(*laws, strict=True))
        return TapTable(maps_of_sources(sources), probabilities, size)

    def _sampled(self, size: tuple[int, int], ranges: list[tuple[float, float]]) -> TapTable:
        """`num_maps` quasi-random draws of the parameters that vary."""
        (kh, kw), (fraction_x, fraction_y) = size, self.translate or (0.0, 0.0)
        ranges = [*ranges, (-fraction_x * kw, fraction_x * kw), (-fraction_y * kh, fraction_y * kh)]
        varying = [i for i, (low, high) in enumerate(ranges) if low < high]
        parameters = torch.tensor([low for low, _ in ranges], dtype=torch.float64).repeat(self.num_maps, 1)
        widths = torch.tensor([ranges[i][1] - ranges[i][0] for i in varying], dtype=torch.float64)
        parameters[:, varying] += quasi_random(self.num_maps, len(varying)) * widths
        maps = [
            self._map(size, angle, (round(dx), round(dy)), scale, (shear_x, shear_y))
            for angle, scale, shear_x, shear_y, dx, dy in parameters.tolist()
        ]
        return TapTable(torch.stack(maps), [1 / self.num_maps] * self.num_maps, size)

    def _map(
        self,
        size: tuple[int, int],
        angle: float,
        shift: tuple[float, float],
        scale: float,
        shear: Sequence[float],
    ) -> Tensor:
        # a move by whole taps copies them; bilinear weights would only add rounding errors
        moves_only = (angle, scale, *shear) == (0.0, 1.0, 0.0, 0.0)
        mode = "nearest" if moves_only else self.interpolation
        return functional.affine(size, angle, shift, scale, shear, mode, self.center)

    def _matrix_rows(self) -> list[tuple[float, MatrixRow]]:
        if self._ranges != [(0, 0), (1, 1), (0, 0), (0, 0)]:
            return super()._matrix_rows()
        fraction_x, fraction_y = self.translate or (0.0, 0.0)
        return [(1.0, MatrixRow(fraction_out=fraction_y, fraction_in=fraction_x))]


@dataclass(frozen=True, repr=False)
class RandomRotation(GridTransform):
    """Rotate the kernel about its middle, as torchvision's RandomRotation does an image.

    degrees:       a number d >= 0 for (-d, d), or (low, high); counter-clockwise
    interpolation: "nearest": the law is exact; "bilinear": `num_maps` angles, evenly spread over the range
    expand:        False: a kernel keeps its size
    center:        (x, y) in taps from the upper left corner
    num_maps:      draws in the tap table of a bilinear rotation
    """

    degrees: float | tuple[float, float]
    interpolation: str = "nearest"
    expand: InitVar[bool] = False
    center: tuple[float, float] | None = None
    _: KW_ONLY
    num_maps: int = 256

    def __post_init__(self, expand: bool) -> None:
        if expand is not False:
            raise ValueError(f"expand={expand!r}; accepted is False, a kernel keeps its size")
        put = object.__setattr__
        put(self, "degrees", check_symmetric_range("degrees", self.degrees))
        put(self, "interpolation", check_interpolation(self.interpolation))
        put(self, "center", check_center(self.center))
        put(self, "num_maps", check_count("num_maps", self.num_maps))

    def __repr__(self) -> str:
        return _repr_with_degrees(self)

    def _build_table(self, size: tuple[int, int]) -> TapTable:
        low, high = _low_high(self.degrees)
        if low < high and self.interpolation == "nearest":
            # `affine` turns the other way
            sources, probabilities = rotation_law(size, (-high, -low), self.center)
            return TapTable(maps_of_sources(sources), probabilities, size)
        count = self.num_maps if low < high else 1
        angles = low + (high - low) * quasi_random(count, 1)[:, 0]
        maps = [functional.rotate(size, angle, self.interpolation, self.center) for angle in angles.tolist()]
        return TapTable(torch.stack(maps), [1 / count] * count, size)


def _checked_shear(shear: object) -> tuple[float, ...]:
    ranges: tuple[float, ...]
    if isinstance(shear, Sequence) and len(shear) == 4:
        ranges = (*check_range("shear[0:2]", shear[:2]), *check_range("shear[2:4]", shear[2:]))
    elif isinstance(shear, Sequence) and not isinstance(shear, str) and len(shear) != 2:
        raise ValueError(f"shear={shear!r} has {len(shear)} entries; accepted is a number >= 0, 2 numbers or 4 numbers")
    else:
        ranges = check_symmetric_range("shear", shear)
    for angle in ranges:
        if math.isclose(math.cos(math.radians(angle)), 0, abs_tol=1e-9):
            raise ValueError(f"shear={shear!r}; accepted is angles other than 90 degrees, which have no tangent")
    return ranges


def _low_high(degrees: float | tuple[float, float]) -> tuple[float, float]:
    """What __post_init__ has made of `degrees`."""
    return cast("tuple[float, float]", degrees)


def _repr_with_degrees(transform: RandomAffine | RandomRotation) -> str:
    low, high = _low_high(transform.degrees)
    text = GridTransform.__repr__(transform)
    return text.replace(f"degrees={_format((low, high))}", f"degrees={_format(high)}", 1) if low == -high else text
