"""What is kept for backward, and the peak of forward and backward, above the plain layer."""

from __future__ import annotations

import dataclasses
from functools import partial

from watnn.bench.case import Case
from watnn.bench.convolution import contenders
from watnn.bench.shapes import Shape
from watnn.bench.suites import linear

_CONV = [Shape(64, 32, batch=128), Shape(512, 4, batch=16)]  # large activations; a large weight
_DEPTHWISE = [Shape(576, 16, 3, 16, depthwise=True)]
_LINEAR = [linear.Shape(4096, 4096, 16), linear.Shape(1024, 1024, 1024)]
_QUICK = [_CONV[1]]


def cases() -> list[Case]:
    conv = [
        Case("memory", str(s), partial(contenders, s, ("translate", "resized_crop")), quick=s in _QUICK) for s in _CONV
    ]
    depthwise = [Case("memory", f"depthwise {s}", partial(contenders, s, ("translate",))) for s in _DEPTHWISE]
    dense = [Case("memory", str(s), partial(linear.contenders, s), layout="row-major") for s in _LINEAR]
    return [dataclasses.replace(case, measures="memory") for case in (*conv, *depthwise, *dense)]
