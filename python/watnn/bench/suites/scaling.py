"""How the cost grows: with the active taps, the channels, the batch, the threads, the shadows; one quantity at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

import torch

from wat_kernels import TapTable
from watnn.bench.case import Case, Contender, Options
from watnn.bench.convolution import layer, plain
from watnn.bench.shapes import Shape, Tensors

_BASE = Shape(128, 16, batch=32)
_QUICK_AT = {"taps": (1, 5, 9), "shadows": (1, 8)}
CURVES = {
    "taps": tuple(range(1, 10)),
    "channels": (16, 32, 64, 128, 256, 512),
    "batch": (1, 2, 4, 8, 16, 32, 64, 128),
    "threads": (1, 2, 4, 8, 16, 32, 64),
    "shadows": (1, 2, 4, 8, 16, 32),
}


def cases() -> list[Case]:
    return [
        Case(
            "scaling",
            f"{curve}={at}",
            partial(contenders, curve, at),
            modes=("full",),
            quick=at in _QUICK_AT.get(curve, ()),
            threads=at if curve == "threads" else None,
            curve=curve,
            at=at,
        )
        for curve, points in CURVES.items()
        for at in points
        if curve != "threads" or at <= (os.cpu_count() or 1)
    ]


def contenders(curve: str, at: int, options: Options) -> Sequence[Contender]:
    """One row of a tap table at a time: `at` active taps where those vary, the identity elsewhere; and nn.Conv2d."""
    shape = _BASE._replace(channels=at) if curve == "channels" else _BASE
    shape = shape._replace(batch=at) if curve == "batch" else shape
    variant, table = ("identity", first_taps(9)) if curve != "taps" else (f"{at} taps", first_taps(at))
    tensors = Tensors.of(shape, options.device, options.dtype)
    make: Callable[[str], Contender] = partial(
        layer, shape, tensors, variant, table, options=options, shadows=at if curve == "shadows" else 1
    )
    found = [make(backend=backend) for backend in options.backends]
    if all(contender.backend != "library" for contender in found):
        found.append(make(backend="library"))
    return [*found, plain(shape, tensors, options)]


def first_taps(count: int) -> TapTable:
    """A 3x3 table with one row that keeps the `count` taps nearest to the middle in place and leaves out the others."""
    order = [4, 1, 3, 5, 7, 0, 2, 6, 8]
    mask = torch.zeros(9)
    mask[order[:count]] = 1.0
    return TapTable(mask.diag().unsqueeze(0), [1.0], (3, 3))
