"""The fixed problems of the battery: every kind of layer, draw and layout, at sizes that take milliseconds.

A case has no numbers yet; `battery` makes them, the same on every machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from wat_kernels import MatrixGrid, Noise, TapTable, draw_rows
from wat_kernels.default_device import on_cpu
from watnn.transforms import RandomAffine

SIZES = ("usual", "tiny")
_DROP, _SCALE = Noise("dropconnect", 0.5), Noise("multiplicative", 0.2)


@dataclass(frozen=True)
class Case:
    """One call of an op.

    x, weight: shapes; in channels_last where `x_last`, `weight_last` say so
    gain:      "" none, "one" element in fp32, "channel" one for each output channel in the dtype of x
    drawn:     the op's arguments besides x, weight, bias, gain and backend
    exact:     of small integers and DropConnect(0.5), so that all sums are exact and a result is right to the bit: a row or
               a mask that differs in one element shows
    core:      worth running in a dtype whose kernels are those of another one
    """

    op: str
    what: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    drawn: dict[str, Any] = field(hash=False)
    gain: str = ""
    bias: bool = True
    x_last: bool = False
    weight_last: bool = False
    exact: bool = False
    core: bool = False


@cache
@on_cpu
def cases(sizes: str = "usual") -> tuple[Case, ...]:
    """All of them. sizes: "usual", or "tiny" for kernels that are interpreted. Raises ValueError for anything else."""
    if sizes not in SIZES:
        raise ValueError(f"sizes={sizes!r}; accepted are {', '.join(SIZES)}")
    tiny = sizes == "tiny"
    return (*_convolutions(tiny), *_linear(tiny))


def _convolutions(tiny: bool) -> Iterator[Case]:
    op, still, moves, mixes = "shadow_conv", TapTable.identity((3, 3)), _translations(), _mixing()
    moved = {"table": moves, "key": _key(moves, 2), "shadows": 2, "padding": 1, "noise": _DROP}
    odd = {"table": moves, "key": 3, "padding": 1, "stride": 2, "noise": _SCALE}
    mixed = {"table": mixes, "key": _key(mixes, 2, {0, 2}), "shadows": 2, "padding": (2, 1), "dilation": 2}
    in_bits = "translations, DropConnect, 2 shadows: to the bit"
    odd_sizes = "translations, multiplicative noise, stride 2, odd sizes"
    mixing = "rows that mix taps or keep none, dilation 2, odd sizes"
    x, weight = ((2, 8, 6, 6), (8, 8, 3, 3)) if tiny else ((8, 64, 16, 16), (64, 64, 3, 3))
    yield Case(op, "no draw, gain per channel", x, weight, {"table": still, "key": 1, "padding": 1}, "channel",
               x_last=True, weight_last=True, core=True)  # fmt: skip
    yield Case(op, in_bits, x, weight, moved, "one", x_last=True, exact=True, core=True)
    x, weight = ((2, 3, 5, 7), (5, 3, 3, 3)) if tiny else ((6, 13, 11, 15), (21, 13, 3, 3))
    yield Case(op, odd_sizes, x, weight, odd, "one")
    yield Case(op, mixing, x, weight, {**mixed, "noise": _DROP}, "channel", bias=False, weight_last=True)
    groups = 2 if tiny else 3
    x, weight = ((2, 6, 5, 6), (8, 3, 3, 3)) if tiny else ((4, 48, 12, 13), (96, 16, 3, 3))
    yield Case(op, in_bits, x, weight, {**moved, "groups": groups}, "channel", x_last=True, exact=True, core=True)
    yield Case(op, odd_sizes, x, weight, {**odd, "groups": groups}, "one", weight_last=True)
    channels = 3 if tiny else 37
    x, weight = ((2, 2, 6, 6), (2, 1, 3, 3)) if tiny else ((8, 64, 16, 16), (64, 1, 3, 3))
    yield Case(op, in_bits, x, weight, {**moved, "groups": x[1]}, "one", x_last=True, exact=True, core=True)
    x, weight = (2, channels, 5, 7) if tiny else (6, channels, 15, 13), (channels, 1, 3, 3)
    yield Case(op, odd_sizes, x, weight, {**odd, "groups": channels}, "channel", x_last=True, weight_last=True)
    yield Case(op, mixing, x, weight, {**mixed, "groups": channels, "noise": None}, "one", bias=False)


def _linear(tiny: bool) -> Iterator[Case]:
    op = "shadow_linear"
    real, odd = ((16, 24), (9, 13)) if tiny else ((256, 384), (83, 101))
    for rows, odd_rows in ((4, 6), (68, 66)) if tiny else ((32, 14), (512, 130)):
        still = {"key": 1}
        yield Case(op, "no draw, gain per channel", (rows, real[0]), real[::-1], still, "channel", core=rows > 64)
        moved = {"grid": _moving(real[::-1]), "key": 5, "shadows": 2, "noise": _DROP}
        what = "moved and mirrored, DropConnect, 2 shadows: to the bit"
        yield Case(op, what, (rows, real[0]), real[::-1], moved, "one", exact=True, core=True)
        drawn = {"key": 7, "shadows": 1, "noise": _SCALE}
        yield Case(op, "multiplicative noise, odd sizes", (odd_rows, odd[0]), odd[::-1], drawn, "one", bias=False)
        drawn = {"grid": _moving(odd[::-1]), "key": 9, "shadows": 2, "noise": _SCALE}
        what = "moved and mirrored, multiplicative noise, odd sizes"
        yield Case(op, what, (odd_rows, odd[0]), odd[::-1], drawn, "channel")


def _translations() -> TapTable:
    return RandomAffine(degrees=0, translate=(0.3, 0.3)).tap_table((3, 3))


def _mixing() -> TapTable:
    """A row that moves by half a tap, as bilinear interpolation does, the identity, and a row that keeps no tap."""
    line = 0.5 * torch.eye(3) + 0.5 * torch.eye(3).roll(1, 1).triu()
    return TapTable(torch.stack([torch.kron(line, line), torch.eye(9), torch.zeros(9, 9)]), [0.5, 0.25, 0.25], (3, 3))


def _moving(shape: tuple[int, int]) -> MatrixGrid:
    """Mirrored along each axis or none, and moved by up to a quarter of the matrix."""
    most = [size << 14 for size in shape]
    return MatrixGrid([[1, 0, *most], [0, 1, *most], [0, 0, *most]], [0.25, 0.25, 0.5])


def _key(table: TapTable, shadows: int, rows: set[int] | None = None) -> int:
    """The first key whose shadows draw these rows; without `rows`, each another one, and not the identity."""
    unmoved = {row for row in range(len(table)) if torch.equal(table.maps[row], torch.eye(table.maps.shape[1]))}
    for key in itertools.count(1):
        drawn = set(draw_rows(table, key, shadows).tolist())
        if drawn == rows or (rows is None and len(drawn) == shadows and not drawn & unmoved):
            return key
    raise AssertionError("unreachable")
