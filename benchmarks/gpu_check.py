"""Everything that only a GPU can show, in less than eight minutes: `make gpu-check`.

    python -m benchmarks.gpu_check [--results FOLDER] [--minutes 7.5] [--skip tests sanitizer launches benchmark]

Runs the tests on the GPU, compute-sanitizer over a small run, counts launches and memory of each pass, and measures the
layers against the plain ones. Writes FOLDER/<gpu>/: checks.csv, logs, and the rows of the benchmark. Exit status 1 where
a check failed; a bar that is missed is printed and fails nothing.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from watnn.bench.case import Case, Options
from watnn.bench.convolution import contenders
from watnn.bench.rows import Environment, Row
from watnn.bench.runner import measure
from watnn.bench.shapes import Shape
from watnn.bench.store import Output, folder_name
from watnn.bench.suites import linear as linear_suite
from watnn.bench.suites.linear import NOISES
from watnn.bench.verify import WrongResult

from benchmarks.gpu_facts import GPU_BACKENDS, bytes_beyond_results, kernels_of, layers

ROOT = Path(__file__).parents[1]
SECTIONS = ("tests", "sanitizer", "launches", "benchmark")
# of the suite of the GPU: its own tests, the kernels' against the reference, and those that take WAT_TEST_DEVICE
TESTS = ("tests/gpu", "tests/cuda", "tests/triton/check_philox.py", "tests/triton/check_conv2d.py",
         "tests/triton/check_linear.py", "tests/ops/test_conv2d.py", "tests/ops/test_linear.py",
         "tests/watnn/test_layers.py")  # fmt: skip
REPS = 15
_MOST_BYTES = 1 << 20  # of scratch in a pass


@dataclass(frozen=True)
class Check:
    """One line of checks.csv. found and wanted: in the unit that `what` names."""

    section: str
    what: str
    found: str
    wanted: str
    passed: bool
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks/results", help="where to write (default %(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, default=7.5, help="no new benchmark case after this (default %(default)s)"
    )
    parser.add_argument("--skip", nargs="*", choices=SECTIONS, default=[], help="sections to leave out")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_check: torch finds no GPU here; nothing was checked", file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * arguments.minutes
    torch.backends.cudnn.benchmark = True  # the plain layer at its best
    name = torch.cuda.get_device_name()
    folder = arguments.results / folder_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, width=140)
    console.print(f"{name}, torch {torch.__version__}")
    found: list[Check] = []
    for section, run in (
        ("tests", partial(tests, folder)),
        ("sanitizer", partial(sanitizer, folder)),
        ("launches", launches),
    ):
        if section not in arguments.skip:
            for check in run():
                found.append(check)
                mark = "[green]ok[/]" if check.passed else "[red]FAILED[/]"
                console.print(
                    f"{mark} {check.section}: {check.what}: {check.found} (wanted {check.wanted}), {check.seconds:.0f} s"
                )
    _write(folder / "checks.csv", found)
    wrong = [] if "benchmark" in arguments.skip else benchmark(arguments.results, deadline, console)
    return 1 if wrong or not all(check.passed for check in found) else 0


def tests(folder: Path) -> Iterator[Check]:
    """The suite on CUDA, in several processes where pytest-xdist is there."""
    parallel = ["-n", "6"] if importlib.util.find_spec("xdist") else []
    existing = [path for path in TESTS if (ROOT / path).exists()]
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-m", "not long", *parallel, *existing]
    environment = {
        **os.environ,
        "WAT_TEST_DEVICE": "cuda",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS is deterministic only with it
    }
    yield _run("tests", "pytest on the GPU", command, folder / "tests.log", environment)


def sanitizer(folder: Path) -> Iterator[Check]:
    """memcheck and racecheck; every allocation is one of CUDA's own, so that its bounds are known."""
    tool = shutil.which("compute-sanitizer") or str(
        Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin/compute-sanitizer"
    )
    if not Path(tool).exists():
        yield Check("sanitizer", "compute-sanitizer", "not found", "on PATH or in CUDA_HOME", False, 0.0)
        return
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for kind in ("memcheck", "racecheck"):
        command = [tool, "--tool", kind, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu_small_run"]
        yield _run("sanitizer", kind, command, folder / f"{kind}.log", environment)


def _run(section: str, what: str, command: list[str], log: Path, environment: dict[str, str]) -> Check:
    start = time.monotonic()
    with log.open("w") as file:
        status = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    return Check(section, what, lines[-1].strip("= "), "exit status 0", status == 0, time.monotonic() - start)


def launches() -> Iterator[Check]:
    """Kernels of each pass, and memory beyond its results."""
    for layer in layers():
        start = time.monotonic()
        counts = [len(kernels_of(run)) for run in layer.passes.values()]
        what = f"{layer.name}: kernels of {', '.join(layer.passes)}"
        yield Check("launches", what, str(counts), "[1, 1, 1]", counts == [1, 1, 1], time.monotonic() - start)
        start = time.monotonic()
        beyond = max(bytes_beyond_results(run) for run in layer.passes.values())
        what = f"{layer.name}: bytes beyond the results, the most of a pass"
        yield Check("memory", what, str(beyond), f"<= {_MOST_BYTES}", beyond <= _MOST_BYTES, time.monotonic() - start)


class Bar(NamedTuple):
    """On the geometric mean of a ratio over the cases: a bar, and what is aimed at."""

    suite: str
    variant: str
    mode: str
    baseline: str
    bar: float
    aim: float


BARS = [
    *(Bar("conv", "translate", mode, "plain", 0.90, 0.75) for mode in ("forward", "full")),
    *(Bar("conv", "identity", mode, "plain", 1.10, 1.0) for mode in ("forward", "full")),
    *(Bar("conv", "translate", mode, "official", 0.33, 0.2) for mode in ("forward", "full")),
    *(Bar("conv", "translate", mode, "compiled", 0.75, 0.6) for mode in ("forward", "full")),
    *(Bar("depthwise", "translate", mode, "plain", 0.5, 0.5) for mode in ("forward", "full")),
    *(Bar("linear", "dropconnect", mode, "plain", 1.15, 1.0) for mode in ("forward", "full")),
    *(Bar("linear", "multiplicative", mode, "plain", 1.5, 1.2) for mode in ("forward", "full")),
    *(Bar("linear", "multiplicative", mode, "compiled", 1.0, 0.9) for mode in ("forward", "full")),
    *(Bar("few_rows", noise, mode, "plain", 1.1, 1.0) for noise in NOISES for mode in ("forward", "full")),
]


def benchmark(store: Path, deadline: float, console: Console) -> list[str]:
    """Rows of bf16 for every case that begins before the deadline. Returns the cases whose results were wrong."""
    environment = Environment.of("cuda", "python -m benchmarks.gpu_check")
    output, wrong, left = Output(None, None, store), [], []
    for case, options in _cases():
        if time.monotonic() > deadline:
            left.append(case.name)
            continue
        try:
            for row in measure(case, options, REPS, environment):
                output.add(row)
        except WrongResult as error:
            wrong.append(str(error))
            console.print(f"WRONG RESULT: {error}", style="bold red", soft_wrap=True)
        except torch.OutOfMemoryError:
            console.print(f"{case.suite}, {case.name}: the GPU has too little memory, not measured")
    console.print(_standings(output.rows))
    if left:
        console.print(f"not measured for lack of time: {', '.join(left)}")
    return wrong


def _cases() -> Iterator[tuple[Case, Options]]:
    """Shapes as networks have them, those that say most first; torch.compile, which takes long, for the first of each."""
    cifar = [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2)]  # VGG-16 and ResNet on CIFAR: channels, image
    vgg, resnet = [(128, 112), (256, 56), (512, 28), (512, 14), (64, 224)], [(64, 56), (128, 28), (256, 14), (512, 7)]
    for batch in (128, 1024):
        for place, (channels, image) in enumerate([*resnet, *cifar, *vgg]):
            shape = Shape(channels, image, batch=batch)
            options = Options("cuda", torch.bfloat16, GPU_BACKENDS, compiled=batch == 128 and place < 5)
            yield Case("conv", str(shape), partial(contenders, shape, ("translate", "identity"))), options
        for channels, image in [(96, 56), (144, 56), (192, 28), (384, 14), (576, 14), (960, 7)]:  # MobileNetV2
            shape = Shape(channels, image, batch=batch, depthwise=True)
            options = Options("cuda", torch.bfloat16, GPU_BACKENDS, compiled=False)
            yield Case("depthwise", str(shape), partial(contenders, shape, ("translate",))), options
        for inputs, outputs in [(1024, 1024), (4096, 4096), (8192, 8192), (4096, 1024)]:
            for suite, rows in (("linear", 8 * batch), ("few_rows", batch // 16)):
                shape = linear_suite.Shape(inputs, outputs, rows)
                options = Options("cuda", torch.bfloat16, GPU_BACKENDS, compiled=batch == 128)
                yield Case(suite, str(shape), partial(linear_suite.contenders, shape), layout="row-major"), options


def _standings(rows: list[Row]) -> Table:
    """Each bar, for each backend: the geometric mean over its cases, and the best and the worst of them."""
    table = Table(
        "suite", "draws", "mode", "backend", "against", "cases", "ratio", "best to worst", "bar", "aim", box=box.SIMPLE
    )
    for bar in BARS:
        for backend in GPU_BACKENDS:
            ratios = [
                ratio
                for row in rows
                if (row.suite, row.variant, row.mode, row.backend) == (bar.suite, bar.variant, bar.mode, backend)
                if row.role == "wat" and (ratio := getattr(row, f"vs_{bar.baseline}")) is not None
            ]
            if ratios:
                mean = statistics.geometric_mean(ratios)
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                met = "green" if mean <= bar.bar else "red"
                table.add_row(bar.suite, bar.variant, bar.mode, backend, bar.baseline, str(len(ratios)),
                              f"[{met}]{mean:.2f}[/]", spread, f"{bar.bar:g}", f"{bar.aim:g}")  # fmt: skip
    return table


def _write(path: Path, found: list[Check]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Check)])
        writer.writerows(astuple(check) for check in found)


if __name__ == "__main__":
    sys.exit(main())
