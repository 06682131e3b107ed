"""Compiles the Triton kernels that the check will launch, on a machine without a GPU, into a cache that travels with the tree.

    python -m benchmarks.gpu_check.precompile [--minutes 20] [--tests]

Everything is launched as on a GPU of compute capability 9.0, by a driver that does nothing (benchmarks/host_time.py), so the
cache has what a launch there asks for: the stages' problems, each with every configuration that tuning would try. It holds
for one version of Triton and these sources of the kernels, which its name says. What a launch does not need is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_check.process import ROOT
from benchmarks.gpu_check.report import first_line

FOLDER = ROOT / "build/gpu_check"
_KEPT = (".cubin", ".json", ".so")  # what a launch reads: the kernel, what is known of it, and Triton's launchers
_PROCESSES = os.cpu_count() or 1
_Item = tuple[
    str, str, Callable[[], object]
]  # (what, which of the configurations that suit: one of these, what launches it)
FIRST, LAST, EVERY = "the first", "the last", "every one"
# of --tests, a process each. What they launch is known beforehand, but for random examples, which are others each time
_SUITES = (
    ("tests/triton/check_philox.py", "tests/triton/check_conv.py"),
    ("tests/triton/check_linear.py", "tests/triton/check_noise.py", "tests/ops/test_conv.py", "tests/ops/test_linear.py"),
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the cache goes (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=30, help="no kernel is begun after this (default %(default)s)")
    parser.add_argument("--only", default="", help="problems whose name has this in it")
    parser.add_argument(
        "--tests", action="store_true", help="those of the stage `tests`, too: two thirds as many again"
    )
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)  # a process of its own
    given = parser.parse_args()
    if given.part is not None:
        compile_part(given.part, time.monotonic() + 60 * given.minutes, given.only)
        return 0
    try:
        import triton  # noqa: F401
    except ImportError:
        print("precompile: triton is not installed", file=sys.stderr)
        return 2
    if shutil.which("cc") is None:
        print("precompile: no C compiler (cc), with which Triton builds its launchers", file=sys.stderr)
        return 2
    start = time.monotonic()
    work = given.folder / "compiling"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(work), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_check.precompile",
        "--minutes",
        str(given.minutes),
        "--only",
        given.only,
    ]
    running = [
        subprocess.Popen([*command, "--part", str(part)], cwd=ROOT, env=environment) for part in range(_PROCESSES)
    ]
    if any([process.wait() for process in running]):
        print("precompile: a process failed, no cache was made", file=sys.stderr)
        return 2
    if given.tests:
        _compile_tests({**environment, "CUDA_VISIBLE_DEVICES": ""}, 60 * given.minutes)
    path = pack(work, given.folder)
    kernels = sum(1 for _ in work.glob("*/*.cubin"))
    shutil.rmtree(work)
    megabytes = path.stat().st_size / 1e6
    print(f"{kernels} kernels, {megabytes:.1f} MB, {time.monotonic() - start:.0f} s: {path}")
    return 0


def _compile_tests(environment: dict[str, str], seconds: float) -> None:
    """Says on stderr which suites did not come to their end; what they compiled until then is kept."""
    environment = {
        name: value for name, value in environment.items() if name not in ("TRITON_INTERPRET", "WAT_TEST_DEVICE")
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu_check.compile_tests", "-p", "no:xdist"]
    more = ["-p", "no:cacheprovider", "--tb=no", "-m", "not long"]
    deadline = time.monotonic() + seconds
    running = [
        (suites, subprocess.Popen([*command, *more, *suites], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL))
        for suites in _SUITES
    ]
    for suites, process in running:
        try:
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if status not in (0, 1):  # failures are the rule: nothing was computed
            print(f"precompile: {' '.join(suites)} ended with {status}", file=sys.stderr)


def name() -> str:
    """Of the cache: for which Triton, and for which sources of kernels."""
    import triton

    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "wat_kernels").rglob("triton*.py"), ROOT / "benchmarks/gpu_check/l2_kernel.py"]):
        digest.update(path.read_bytes())
    return f"sm_90-triton-{triton.__version__}-{digest.hexdigest()[:12]}"


def pack(work: Path, folder: Path) -> Path:
    """The files that a launch reads, compressed. The cache of other sources gives way."""
    for old in folder.glob("sm_90-*.tar.xz"):
        old.unlink()
    path = folder / f"{name()}.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        for file in sorted(work.glob("*/*")):
            if file.suffix in _KEPT:
                archive.add(file, arcname=str(file.relative_to(work)))
    return path


def unpacked_cache(folder: Path = FOLDER) -> Path | None:
    """Where the cache for this Triton and these kernels is, unpacked where it is not yet; None where there is none.

    A cache of other versions or sources is said to be one, on stderr.
    """
    try:
        wanted = name()
    except ImportError:
        return None
    archive, target = folder / f"{wanted}.tar.xz", folder / wanted
    if not target.exists():
        if not archive.exists():
            if others := [path.name for path in folder.glob("sm_90-*.tar.xz")]:
                print(f"gpu_check: {others[0]} is not for these kernels; wanted is {archive.name}", file=sys.stderr)
            return None
        try:
            _unpack(archive, target)
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            print(
                f"gpu_check: {archive.name} cannot be unpacked, its kernels are compiled again: {error}",
                file=sys.stderr,
            )
            return None
    return target


def _unpack(archive: Path, target: Path) -> None:
    part = target.with_name(f"{target.name}.part{os.getpid()}")  # what is interrupted is not taken for the whole
    try:
        with tarfile.open(archive) as file:
            file.extractall(part, filter="data")
        for group in part.glob("*/__grp__*.json"):  # they name their files by where these were
            paths, home = json.loads(group.read_text())["child_paths"], target / group.parent.name
            here = {child: str(home / child) for child in paths if (group.parent / child).exists()}
            group.write_text(json.dumps({"child_paths": here}))
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def install_counter() -> Callable[[], tuple[int, int]]:
    """From now on counts the kernels that this process takes from a cache, and those that it compiles."""
    import triton

    counted = [0, 0]
    before = triton.knobs.compilation.listener

    def listener(*arguments, cache_hit: bool, **more) -> None:
        counted[0 if cache_hit else 1] += 1
        if before is not None:
            before(*arguments, cache_hit=cache_hit, **more)

    triton.knobs.compilation.listener = listener
    return lambda: (counted[0], counted[1])


def compile_part(part: int, deadline: float, only: str) -> None:
    """Launches every _PROCESSES-th problem, with one configuration after the other.

    A configuration that Triton cannot compile, and how many problems there was no time for, are said on stderr: the GPU's
    machine will meet them as it would without a cache.
    """
    from triton.runtime.errors import TritonError

    from benchmarks.host_time import stub_driver
    from wat_kernels import triton_launch

    stub_driver()
    missed = 0
    for place, (what, which, run) in enumerate(items()):
        if place % _PROCESSES != part or only not in what:
            continue
        index, most = 0, 1
        while index < most and time.monotonic() < deadline:
            met: list[int] = []

            def pick(
                kernel: str, suited: Sequence, index: int = index, met: list[int] = met, which: str = which
            ) -> object:
                met.append(len(suited))
                return suited[-1] if which == LAST else suited[min(index, len(suited) - 1)]

            try:
                with triton_launch.choosing(pick):  # type: ignore[arg-type]
                    run()
            except (TritonError, RuntimeError) as error:  # the latter where a pass of the compiler fails
                print(
                    f"precompile: {what}, configuration {index}: {type(error).__name__}: {first_line(error)}",
                    file=sys.stderr,
                )
            most = max(met, default=1) if which == EVERY else 1
            index += 1
        missed += index < most
    if missed:
        print(f"precompile: no time was left for {missed} problems or some of their configurations", file=sys.stderr)


def items() -> Iterator[_Item]:
    """Every problem of the stages, in the order in which the stages are run."""
    from benchmarks.gpu_check import tuning

    yield "facts: host time", FIRST, _host_time
    yield from _smoke()
    yield "speed: L2", FIRST, _from_l2
    yield "speed: noise", FIRST, _noise
    yield "speed: rows", FIRST, _rows
    yield "sanitizer: small run", LAST, _small_run
    for shape, variants in _conv_shapes():
        yield f"convolution {shape}", EVERY, partial(_convolution, shape, variants)
    for shape in _linear_shapes():
        for noise in ("dropconnect", "multiplicative"):
            yield f"linear {shape} {noise}", EVERY, partial(_linear, shape, noise)
    for shape in tuning.SHAPES:
        for step, run in tuning.passes_of(shape, "cpu").items():
            yield f"tuning {shape} {step}", EVERY, run


def _host_time() -> None:
    from benchmarks import host_time

    for _ in host_time.measure(20):
        pass


def _smoke() -> Iterator[_Item]:
    from watnn.check.battery import probes

    for probe in probes("cpu", backends=("triton",)):
        yield f"smoke: {probe.layer} {probe.dtype} {probe.what}", FIRST, probe.run
        if probe.dtype == torch.float32 and probe.case.core and not probe.case.exact:  # as on a GPU
            yield f"smoke: {probe.layer} TF32 {probe.what}", FIRST, replace(probe, tf32=True).run


def _small_run() -> None:
    from benchmarks.gpu_check.small_run import calls

    for _ in calls("cpu"):
        pass


def _from_l2() -> None:
    from benchmarks.gpu_check.l2_kernel import BLOCK, read_all

    read_all[(4,)](torch.ones(2 * BLOCK), torch.ones(4), 2, 4, BLOCK)


def _noise() -> None:
    """What `library` and `reference` launch for a linear layer. Of all sizes there: what is compiled is the same for them."""
    from watnn.bench.suites.linear import NOISES

    from wat_kernels import triton_noise

    key, weight = torch.tensor(0), torch.zeros(1024, 1024, dtype=torch.bfloat16)
    for noise in NOISES.values():
        triton_noise.multiply(weight, torch.empty_like(weight), key, 0, noise.code, noise.amount)
        triton_noise.draw(key, 1, weight.numel(), noise.code, noise.amount)


def _rows() -> None:
    """What `library` and `reference` launch for a convolution."""
    from wat_kernels import triton_rows

    triton_rows.row_words(torch.tensor(0), 1)


def _conv_shapes() -> Iterator[tuple]:
    from benchmarks.gpu_check import benchmark, speed

    seen = set()
    shapes = [(shape, ("translate",)) for shape in speed.CONVOLUTIONS]
    shapes += [(shape, ("translate", "identity")) for shape in benchmark.CONVOLUTIONS]
    for shape, variants in shapes:
        if (shape, variants) not in seen:
            seen.add((shape, variants))
            yield shape, variants


def _linear_shapes() -> list:
    from benchmarks.gpu_check import benchmark, speed

    return list(dict.fromkeys([*speed.LINEAR, *benchmark.LINEAR]))


def _convolution(shape, variants: Sequence[str]) -> None:
    """What a contender of the benchmark launches. Nothing reads or writes the tensors, so large ones cost nothing."""
    from watnn.bench.convolution import TRANSFORMS

    from wat_kernels import TapTable, shadow_conv2d

    size, form = (shape.batch, shape.channels, shape.image, shape.image), torch.channels_last
    x, dy = (torch.empty(size, dtype=torch.bfloat16, memory_format=form) for _ in range(2))
    weight = torch.zeros(
        shape.channels, shape.channels // shape.groups, shape.kernel, shape.kernel, dtype=torch.bfloat16
    )
    if shape.weight_last:
        weight = weight.contiguous(memory_format=form)
    leaves = [t.requires_grad_() for t in (x, weight, torch.zeros(shape.channels, dtype=torch.bfloat16),
                                           torch.ones((), dtype=torch.bfloat16))]  # fmt: skip
    for variant in variants:
        table = TRANSFORMS[variant].tap_table((shape.kernel, shape.kernel))
        table = TapTable(table.maps[:1], [1.0], (shape.kernel, shape.kernel))
        y = shadow_conv2d(*leaves[:3], table=table, key=0, gain=leaves[3], padding=shape.padding, groups=shape.groups,
                          backend="triton")  # fmt: skip
        torch.autograd.grad(y, leaves, dy)


def _linear(shape, noise: str) -> None:
    from watnn.bench.suites.linear import NOISES

    from wat_kernels import shadow_linear

    x, dy = (torch.empty(shape.rows, size, dtype=torch.bfloat16) for size in (shape.inputs, shape.outputs))
    weight, bias = torch.empty(shape.outputs, shape.inputs, dtype=torch.bfloat16), torch.zeros(shape.outputs, dtype=torch.bfloat16)  # fmt: skip
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    y = shadow_linear(*leaves, key=0, noise=NOISES[noise], backend="triton")
    torch.autograd.grad(y, leaves, dy)


if __name__ == "__main__":
    sys.exit(main())
