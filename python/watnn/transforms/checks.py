"""Checks of the arguments of transforms: each returns the value in one form, or raises naming what is accepted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

INTERPOLATIONS = ("nearest", "bilinear")


def check_number(
    name: str, value: object, low: float = -math.inf, high: float = math.inf, above: float = -math.inf
) -> float:
    """A finite float with low <= value <= high and value > above."""
    accepted = _bounds(low, high, above)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}; accepted is {accepted}")
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high and number > above):
        raise ValueError(f"{name}={value!r}; accepted is {accepted}")
    return number


def check_numbers(name: str, value: object, count: int = 2, **bounds: float) -> tuple[float, ...]:
    """`count` finite floats, each within the bounds of check_number."""
    accepted = f"{count} numbers, each {_bounds(**bounds)}"
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{name}={value!r}; accepted is {accepted}")
    if len(value) != count:
        raise ValueError(f"{name}={value!r} has {len(value)} entries; accepted is {accepted}")
    return tuple(check_number(f"{name}[{i}]", entry, **bounds) for i, entry in enumerate(value))


def check_pair(name: str, value: object, **bounds: float) -> tuple[float, float]:
    """Two finite floats, each within the bounds of check_number."""
    first, second = check_numbers(name, value, 2, **bounds)
    return first, second


def check_range(name: str, value: object, **bounds: float) -> tuple[float, float]:
    """(low, high) with low <= high, both within the bounds of check_number."""
    low, high = check_pair(name, value, **bounds)
    if low > high:
        raise ValueError(f"{name}={value!r} is reversed; accepted is (low, high) with low <= high")
    return low, high


def check_symmetric_range(name: str, value: object) -> tuple[float, float]:
    """A number d >= 0, meaning (-d, d), or a range."""
    if isinstance(value, Real) and not isinstance(value, bool):
        value = check_number(name, value, low=0)
        return 0.0 - value, value  # 0.0 - 0.0 is 0.0, where -0.0 would spoil the repr
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{name}={value!r}; accepted is a number >= 0 or (low, high)")
    return check_range(name, value)


def check_probability(name: str, value: object) -> float:
    return check_number(name, value, low=0, high=1)


def check_count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r}; accepted is an integer >= 1")
    if value < 1:
        raise ValueError(f"{name}={value!r}; accepted is an integer >= 1")
    return int(value)


def check_interpolation(value: object) -> str:
    """ "nearest" or "bilinear"; torchvision's enumeration of the same values is taken too."""
    name = getattr(value, "value", value)
    if name not in INTERPOLATIONS:
        raise ValueError(f"interpolation={value!r}; accepted is 'nearest' or 'bilinear'")
    return name


def check_center(value: object) -> tuple[float, float] | None:
    return None if value is None else check_pair("center", value)


def check_size(name: str, value: object, square: bool = False) -> tuple[int, int]:
    """Two positive integers; where `square`, also one, which stands for both."""
    accepted = ("a positive integer or " if square else "") + "two positive integers"
    sizes = (value, value) if square and isinstance(value, Integral) else value
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Sequence):
        raise TypeError(f"{name}={value!r}; accepted is {accepted}")
    if any(isinstance(size, bool) or not isinstance(size, Integral) for size in sizes):
        raise TypeError(f"{name}={value!r}; accepted is {accepted}")
    if len(sizes) != 2 or min(sizes) < 1:
        raise ValueError(f"{name}={value!r}; accepted is {accepted}")
    return int(sizes[0]), int(sizes[1])


def check_kernel_size(value: object) -> tuple[int, int]:
    """(kh, kw) of a kernel size given as one integer or two."""
    return check_size("kernel_size", value, square=True)


def _bounds(low: float = -math.inf, high: float = math.inf, above: float = -math.inf) -> str:
    if math.isfinite(low) and math.isfinite(high):
        return f"a number in [{low:g}, {high:g}]"
    if math.isfinite(low):
        return f"a finite number >= {low:g}"
    if math.isfinite(above):
        return f"a finite number > {above:g}"
    return "a finite number"
