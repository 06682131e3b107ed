"""The benchmark's cases in bf16, those first that tell most, until the time is up; rows go to the store of results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from watnn.bench.case import Case, Options
from watnn.bench.convolution import contenders
from watnn.bench.rows import BASELINES, Environment, Row
from watnn.bench.runner import measure
from watnn.bench.shapes import Shape
from watnn.bench.store import Output
from watnn.bench.suites import linear
from watnn.bench.suites.linear import Shape as LinearShape
from watnn.bench.verify import WrongResult

from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.report import Finding, Step

COMMAND = "python -m benchmarks.gpu_check"
_REPS = 15


def steps(place: Place) -> Sequence[Step]:
    output = Output(None, None, place.results)
    environment = Environment.of(place.device, COMMAND)
    return [
        Step(f"{case.suite}, {case.name}", partial(_measured, place, case, options, environment, output), 90)
        for case, options in (_tiny(place) if place.rehearsal else cases())
    ]


_CIFAR = ((64, 32), (128, 16), (256, 8), (512, 4), (512, 2))  # VGG-16 and ResNet on CIFAR: channels, image
_VGG = ((128, 112), (256, 56), (512, 28), (512, 14), (64, 224))
_RESNET = ((64, 56), (128, 28), (256, 14), (512, 7))
_MOBILENET = ((96, 56), (144, 56), (192, 28), (384, 14), (576, 14), (960, 7))
_MATRICES = ((1024, 1024), (4096, 4096), (8192, 8192), (4096, 1024))
_BATCHES = (128, 1024)
CONVOLUTIONS = (
    *(Shape(*size, batch=batch, weight_last=True) for batch in _BATCHES for size in (*_RESNET, *_CIFAR, *_VGG)),
    *(Shape(*size, batch=128) for size in _CIFAR),  # as nn.Conv2d makes its weight, contiguous
)
LINEAR = tuple(
    LinearShape(*size, rows) for batch in _BATCHES for size in _MATRICES for rows in (8 * batch, batch // 16)
)
_FEW_ROWS = 64  # what the CUDA kernels are for


def cases() -> Iterator[tuple[Case, Options]]:
    """Shapes as networks have them. torch.compile, which takes long, for the first of each kind.

    Depthwise convolutions run through `cuda` alone: Triton's kernels are not made for them, and one case takes minutes.
    """
    depthwise = [Shape(*size, batch=batch, depthwise=True) for batch in _BATCHES for size in _MOBILENET]
    kinds = [
        [_conv(shape, compiled=place < 3) for place, shape in enumerate(CONVOLUTIONS)],
        [_linear(shape, compiled=place < 4) for place, shape in enumerate(LINEAR)],
        [_depthwise(shape) for shape in depthwise],
    ]
    for place in range(max(map(len, kinds))):  # by turns, so that whatever time there is shows something of each
        yield from (kind[place] for kind in kinds if place < len(kind))


def _conv(shape: Shape, compiled: bool) -> tuple[Case, Options]:
    options = Options("cuda", torch.bfloat16, ("triton",), compiled)
    return Case("conv", str(shape), partial(contenders, shape, ("translate", "identity"))), options


def _depthwise(shape: Shape) -> tuple[Case, Options]:
    options = Options("cuda", torch.bfloat16, ("cuda",), compiled=False)
    return Case("depthwise", str(shape), partial(contenders, shape, ("translate",))), options


def _linear(shape: LinearShape, compiled: bool) -> tuple[Case, Options]:
    few = shape.rows <= _FEW_ROWS
    options = Options("cuda", torch.bfloat16, ("cuda", "triton") if few else ("triton",), compiled)
    suite = "few_rows" if few else "linear"
    return Case(suite, str(shape), partial(linear.contenders, shape), layout="row-major"), options


def _tiny(place: Place) -> Iterator[tuple[Case, Options]]:
    shape, modes = LinearShape(5, 4, 3), ("full",)
    options = Options(place.device, torch.float32, ("cuda", "triton"), compiled=False)
    yield Case("few_rows", str(shape), partial(linear.contenders, shape), modes, layout="row-major"), options


def _measured(
    place: Place, case: Case, options: Options, environment: Environment, output: Output
) -> Iterator[Finding]:
    name = f"{case.suite}, {case.name}"
    try:
        for row in measure(case, options, 1 if place.rehearsal else _REPS, environment):
            output.add(row)
            yield _finding(name, row)
    except WrongResult as error:
        yield Finding(name, False, str(error))
    except torch.OutOfMemoryError:
        yield Finding(name, None, "the GPU has too little memory, not measured")


def _finding(name: str, row: Row) -> Finding:
    what = " ".join(filter(None, (row.name, row.variant, row.backend, row.mode)))
    ratios = {f"vs_{base}": value for base in BASELINES if (value := getattr(row, f"vs_{base}")) is not None}
    numbers = {"suite": row.suite, "role": row.role, "variant": row.variant, "mode": row.mode, "backend": row.backend,
               **({} if row.ms is None else {"ms": row.ms}), **ratios}  # fmt: skip
    text = row.note if row.ms is None else f"{1e3 * row.ms:.1f} us"
    return Finding(f"{name}: {what}", None, text, numbers)
