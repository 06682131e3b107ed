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
from watnn.bench.suites import linear as linear_suite
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


def cases() -> Iterator[tuple[Case, Options]]:
    """Shapes as networks have them. torch.compile, which takes long, for the first of each kind.

    Depthwise convolutions run through `cuda` alone: Triton's kernels are not made for them, and one case takes minutes.
    """
    cifar = [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2)]  # VGG-16 and ResNet on CIFAR: channels, image
    vgg, resnet = [(128, 112), (256, 56), (512, 28), (512, 14), (64, 224)], [(64, 56), (128, 28), (256, 14), (512, 7)]
    for batch in (128, 1024):
        kinds = [
            [_conv(Shape(*size, batch=batch, weight_last=True), batch == 128 and place < 3)
             for place, size in enumerate([*resnet, *cifar, *vgg])],
            [_linear(suite, linear_suite.Shape(*size, rows), batch == 128)
             for size in [(1024, 1024), (4096, 4096), (8192, 8192), (4096, 1024)]
             for suite, rows in (("linear", 8 * batch), ("few_rows", batch // 16))],
            [_depthwise(Shape(*size, batch=batch, depthwise=True))
             for size in [(96, 56), (144, 56), (192, 28), (384, 14), (576, 14), (960, 7)]],  # MobileNetV2
        ]  # fmt: skip
        for place in range(max(map(len, kinds))):  # by turns, so that whatever time there is shows something of each
            yield from (kind[place] for kind in kinds if place < len(kind))
    for size in cifar:  # as nn.Conv2d makes its weight, contiguous
        yield _conv(Shape(*size, batch=128), False)


def _conv(shape: Shape, compiled: bool) -> tuple[Case, Options]:
    options = Options("cuda", torch.bfloat16, ("triton",), compiled)
    return Case("conv", str(shape), partial(contenders, shape, ("translate", "identity"))), options


def _depthwise(shape: Shape) -> tuple[Case, Options]:
    options = Options("cuda", torch.bfloat16, ("cuda",), compiled=False)
    return Case("depthwise", str(shape), partial(contenders, shape, ("translate",))), options


def _linear(suite: str, shape: linear_suite.Shape, compiled: bool) -> tuple[Case, Options]:
    backends = ("cuda", "triton") if suite == "few_rows" else ("triton",)
    options = Options("cuda", torch.bfloat16, backends, compiled)
    return Case(suite, str(shape), partial(linear_suite.contenders, shape), layout="row-major"), options


def _tiny(place: Place) -> Iterator[tuple[Case, Options]]:
    shape, modes = linear_suite.Shape(5, 4, 3), ("full",)
    options = Options(place.device, torch.float32, ("cuda", "triton"), compiled=False)
    yield Case("few_rows", str(shape), partial(linear_suite.contenders, shape), modes, layout="row-major"), options


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
