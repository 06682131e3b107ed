"""Microbenchmarks of the kernels for pytest-benchmark; benchmarks/README.md says how runs are saved and compared.

    pytest benchmarks/ --benchmark-autosave
    pytest benchmarks/ --benchmark-compare --benchmark-compare-fail=median:10%

Each backend that runs here, forward and backward, on one shape a kind; every result is checked before it is timed.
"""

import pytest
import torch
from watnn.bench.case import Contender, Options
from watnn.bench.convolution import TRANSFORMS, layer
from watnn.bench.shapes import Shape, Tensors
from watnn.bench.suites import linear

from wat_kernels import dispatch

BACKENDS = [name for name in dispatch.NAMES if name != "reference"]
SHAPES = {"conv": Shape(128, 16, batch=16), "depthwise": Shape(576, 16, batch=16, depthwise=True)}
MODES = ["forward", "backward"]


def _time(benchmark, contender: Contender, mode: str) -> None:
    """The draw with the highest probability."""
    if contender.missing:
        pytest.skip(contender.missing)
    run = max(contender.runs, key=lambda run: run.probability)
    run.check()
    benchmark(run.modes[mode]())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transform", ["identity", "translate"])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_conv2d(benchmark, backend, kind, transform, mode):
    options, shape = Options(backends=(backend,)), SHAPES[kind]
    table = TRANSFORMS[transform].tap_table((shape.kernel, shape.kernel))
    tensors = Tensors.of(shape, options.device, torch.float32)
    _time(benchmark, layer(shape, tensors, transform, table, backend, options), mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("noise", linear.NOISES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_linear(benchmark, backend, noise, mode):
    options = Options(backends=(backend,), compiled=False)
    found = linear.contenders(linear.Shape(1024, 1024, 128), options)
    _time(benchmark, next(c for c in found if c.role == "wat" and c.variant == noise), mode)
