"""The time of every configuration that suits a problem, with its registers and instructions, for each pass of key shapes.

So that what tuning chooses, and what it could choose from, can be studied afterwards without a GPU. What the compiler makes
of all configurations for all chips, without their times, is benchmarks/compile_report.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
import triton
from triton.runtime.errors import TritonError
from watnn.bench import convolution
from watnn.bench.shapes import Shape
from watnn.bench.suites.linear import Shape as LinearShape
from watnn.bench.suites.linear import work as linear_work
from watnn.bench.timing import Timed, time_once

from benchmarks.compile_report import nvidia_resources
from benchmarks.gpu_check.passes import conv2d_passes, linear_passes
from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.report import Finding, Step, first_line
from benchmarks.gpu_check.sass import counts, disassembled
from wat_kernels import Noise, TapTable, triton_launch

SHAPES = (
    Shape(64, 32, batch=128), LinearShape(1024, 1024, 1024), Shape(128, 28, batch=128), Shape(512, 7, batch=128),
    LinearShape(4096, 4096, 1024), Shape(256, 14, batch=128),
)  # fmt: skip
_TINY = (Shape(16, 4, batch=2), LinearShape(32, 32, 16))
_NOISE = Noise("dropconnect", 0.3)
_REPS = 7
_DISASSEMBLERS = 8  # at once


def steps(place: Place) -> Sequence[Step]:
    found = []
    for shape in _TINY if place.rehearsal else SHAPES:
        for name in ("forward", "data gradient", "weight gradient"):
            found.append(Step(f"{_kind(shape)} {shape}: {name}", partial(_pass, place, shape, name), 25))
    return found


def _kind(shape: Shape | LinearShape) -> str:
    return "convolution" if isinstance(shape, Shape) else "linear"


def passes_of(shape: Shape | LinearShape, device: str) -> dict[str, Callable[[], object]]:
    """The passes that are measured, by name."""
    if isinstance(shape, Shape):
        return conv2d_passes("triton", shape, device)
    return linear_passes("triton", shape, _NOISE, device)


def _pass(place: Place, shape: Shape | LinearShape, name: str) -> Iterator[Finding]:
    """A finding for each configuration, and one for the best."""
    run = passes_of(shape, place.device)[name]
    if isinstance(shape, Shape):
        every = TapTable.identity((shape.kernel, shape.kernel))
        flops = convolution.work(shape, every, torch.bfloat16)["forward"].flops
    else:
        flops = linear_work(shape, torch.bfloat16)["forward"].flops
    what = f"{_kind(shape)} {shape}: {name}"
    times: dict[str, float] = {}
    kernels: dict[str, bytes] = {}
    for config, numbers, cubin, refused in configurations(run, place):
        if refused:  # the other ones still say something
            yield Finding(f"{what}: {config}", False, refused)
            continue
        times[config], kernels[config] = float(numbers["kernel_us"]), cubin
        numbers["tflops"] = flops / times[config] / 1e6  # of all taps, though a draw leaves some out
        text = f"{times[config]:.1f} us, {numbers['registers']} registers, {numbers['stack']} bytes of stack"
        yield Finding(f"{what}: {config}", None, text, {**numbers, "pass": what, "config": config})
    with ThreadPoolExecutor(_DISASSEMBLERS) as pool:
        made = pool.map(lambda cubin: counts(disassembled(cubin)), kernels.values())
        for config, instructions in zip(kernels, made, strict=True):
            text = ", ".join(f"{count} {kind}" for kind, count in instructions.items())
            yield Finding(
                f"{what}: instructions of {config}", None, text, {**instructions, "pass": what, "config": config}
            )
    if not times:
        return
    best, first = min(times, key=times.__getitem__), next(iter(times))
    ratio = times[first] / times[best]
    text = f"best {best}, {times[best]:.1f} us; the first one that suits takes {ratio:.2f} times that"
    yield Finding(
        what, None, text, {"ratio": ratio, "best": best, "best_us": times[best], "configurations": len(times)}
    )


class Measured(NamedTuple):
    """A configuration: its time and resources and the compiled kernel, or why Triton cannot compile or load it."""

    config: str
    numbers: dict[str, float | int | str]
    cubin: bytes
    refused: str


def configurations(run: Callable[[], object], place: Place) -> Iterator[Measured]:
    """Each that suits, the first one first. run: a pass, which plans one kernel"""
    index, suited = 0, 1
    most = 2 if place.rehearsal else 1 << 30
    while index < min(suited, most):
        met: list[Sequence[triton.Config]] = []

        def pick(kernel: str, suits: list[triton.Config], index: int = index, met: list = met) -> triton.Config:
            met.append(suits)
            return suits[min(index, len(suits) - 1)]

        with triton_launch.choosing(pick) as planned:
            try:
                run()
                timed = time_once(run, 2 if place.rehearsal else _REPS, place.device)
                (plan,) = planned
                found = _measured(plan, timed)
            except TritonError as error:
                found = Measured(describe(met[0][index]), {}, b"", f"{type(error).__name__}: {first_line(error)}")
        yield found
        suited = len(met[0])
        index += 1


def _measured(plan: triton_launch.Planned, timed: Timed) -> Measured:
    cubin = plan.compiled.asm["cubin"]
    registers, stack = nvidia_resources(cubin)
    numbers: dict[str, float | int | str] = {
        "kernel": plan.name, "kernel_us": 1e6 * timed.seconds, "how": timed.how, "registers": registers,
        "stack": stack, "shared": plan.compiled.metadata.shared,
    }  # fmt: skip
    return Measured(describe(plan.config), numbers, cubin, "")


def describe(config: triton.Config) -> str:
    """As "128x64x32 g8, 4 warps, 3 stages": what the kernel's tile is, then what the compiler is told."""
    sizes: Mapping[str, int] = {name: value for name, value in config.kwargs.items() if name != "GROUP_M"}
    group = f" g{config.kwargs['GROUP_M']}" if "GROUP_M" in config.kwargs else ""
    return f"{'x'.join(map(str, sizes.values()))}{group}, {config.num_warps} warps, {config.num_stages} stages"
