"""A first look at speed: ten layers in bf16, each eager (host included) and replayed as a CUDA graph (kernels alone).

Each against the plain layer, the official pipeline (or noise written with torch) and a materialised SW (`library`), right
results first. Before them, how fast the multiprocessors read what lies in L2: what bounds a kernel that reads each tile of a
weight many times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from watnn.bench.case import Contender, Options, Run
from watnn.bench.convolution import contenders as convolution
from watnn.bench.limits import Limits, measure_limits
from watnn.bench.shapes import Shape
from watnn.bench.suites import linear
from watnn.bench.timing import Timed, time_once

from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.report import Finding, Step
from wat_kernels import triton_launch

# those first that say most
CONVOLUTIONS = (
    Shape(64, 32, batch=128, weight_last=True),
    Shape(128, 28, batch=128, weight_last=True),
    Shape(64, 32, batch=128),  # the same with a contiguous weight: what repacking it costs
    Shape(512, 7, batch=128, weight_last=True),
)
DEPTHWISE = (Shape(144, 56, batch=128, depthwise=True), Shape(576, 14, batch=128, depthwise=True))
LINEAR = (linear.Shape(1024, 1024, 1024), linear.Shape(4096, 4096, 16), linear.Shape(4096, 4096, 1024),
          linear.Shape(1024, 1024, 16))  # fmt: skip
MODES = ("forward", "full")
_TINY = (Shape(2, 3, batch=1), Shape(2, 3, batch=1, depthwise=True), linear.Shape(5, 4, 3))


def steps(place: Place) -> Sequence[Step]:
    """One for each layer; their order is that of what they tell."""
    conv, depthwise, dense = ((_TINY[:1], _TINY[1:2], _TINY[2:]) if place.rehearsal
                              else (CONVOLUTIONS, DEPTHWISE, LINEAR))  # fmt: skip
    found = [Step("L2 to multiprocessors", lambda: _from_l2(place), 20)]
    drawn = (
        ("identity",) if place.rehearsal else ("translate", "identity")
    )  # a draw of many is not worth interpreting each
    kinds = (
        ("convolution", conv, lambda shape: partial(convolution, shape, drawn), ("triton",)),
        ("linear", dense, lambda shape: partial(linear.contenders, shape), ("cuda", "triton")),
        ("depthwise", depthwise, lambda shape: partial(convolution, shape, ("translate",)), ("cuda",)),
    )
    for kind, shapes, setup, backends in kinds:
        for shape in shapes:
            found.append(Step(f"{kind} {shape}", partial(_layer, place, f"{kind} {shape}", setup(shape), backends), 60))
    return found


def _layer(
    place: Place, what: str, setup: Callable[[Options], Sequence[Contender]], backends: tuple[str, ...]
) -> Iterator[Finding]:
    """Checks and times one layer. backends: of ours, those that are made for it; one that refuses is a finding."""
    dtype = torch.float32 if place.rehearsal else torch.bfloat16
    limits = measure_limits(place.device, dtype)
    before = len(triton_launch.chosen())
    found = setup(Options(place.device, dtype, backends, compiled=False))
    wrong = set()
    for one in found:
        try:
            for run in one.runs:
                if run.check is not None:
                    run.check()
        except Exception as error:
            wrong.add(_name(one))
            yield Finding(f"{what}: {_name(one)}", False, str(error).splitlines()[0])
        if one.role == "wat" and one.missing and "at most" not in one.missing:  # few rows are what `cuda` takes
            yield Finding(f"{what}: {_name(one)}", False, one.missing)
    times: dict[tuple[str, str], Timed] = {}
    sound = [one for one in found if one.runs and _name(one) not in wrong]
    for mode in MODES:
        for one in sound:
            times[mode, _name(one)] = _mean([(run.probability, _time(run, mode, place)) for run in one.runs])
    for mode in MODES:
        for one in sound:
            yield _timed(what, mode, one, sound, times, limits)
    for chosen in triton_launch.chosen()[before:]:
        numbers = {"kernel": chosen.kernel, "problem": str(chosen.problem), "config": str(chosen.config)}
        yield Finding(f"{what}: configuration of {chosen.kernel} {chosen.problem}", None, str(chosen.config), numbers)


def _time(run: Run, mode: str, place: Place) -> Timed:
    reps = 2 if place.rehearsal else 8
    return time_once(run.modes[mode](), reps, place.device)


def _mean(timed: Sequence[tuple[float, Timed]]) -> Timed:
    """Over the draws; measured as the worst of them was."""
    parts = [sum(share * getattr(one, name) for share, one in timed) for name in ("seconds", "host", "eager")]
    how = "events" if any(one.how == "events" for _, one in timed) else timed[0][1].how
    return Timed(*parts, how)


def _timed(
    what: str,
    mode: str,
    one: Contender,
    others: Sequence[Contender],
    times: dict[tuple[str, str], Timed],
    limits: Limits,
) -> Finding:
    time, work = times[mode, _name(one)], one.work.get(mode)
    numbers: dict[str, float | str] = {
        "layer": what, "mode": mode, "role": one.role, "variant": one.variant, "backend": one.backend,
        "kernel_us": 1e6 * time.seconds, "host_us": 1e6 * time.host, "eager_us": 1e6 * time.eager, "how": time.how,
    }  # fmt: skip
    text = f"{mode}: {1e6 * time.seconds:.1f} us of kernels, eager {1e6 * time.eager:.1f}, host {1e6 * time.host:.1f}"
    if work is not None:
        numbers["tflops"] = work.flops / time.seconds / 1e12
        numbers["of_peak"] = numbers["tflops"] / (limits.flops / 1e12)
        numbers["of_limit"] = limits.seconds(work) / time.seconds
        text += f", {numbers['tflops']:.3g} TFLOP/s, {numbers['of_limit']:.0%} of the limit"
    if one.role == "wat":
        for other in others:
            if other.role != "wat" and other.variant in ("", one.variant):
                against = times[mode, _name(other)]
                numbers[f"vs_{other.role}"] = time.seconds / against.seconds
                numbers[f"eager_vs_{other.role}"] = time.eager / against.eager
    return Finding(f"{what}: {_name(one)}, {mode}", None, text, numbers)


def _name(one: Contender) -> str:
    return " ".join(filter(None, (one.name, one.variant, one.backend)))


def _from_l2(place: Place) -> Iterator[Finding]:
    """Every program reads the whole of a buffer that fits in L2, beginning at another place."""
    import triton

    from benchmarks.gpu_check.l2_kernel import BLOCK, read_all

    if place.rehearsal:
        programs, size, passes = 2, 2 * BLOCK, 1
    else:
        one = torch.cuda.get_device_properties(0)
        programs, size, passes = 4 * one.multi_processor_count, one.L2_cache_size // 4 // 4, 4
        size -= size % BLOCK
    data = torch.ones(size, device=place.device)
    sums = torch.empty(programs, device=place.device)

    def launch() -> None:
        read_all[(programs,)](data, sums, size // BLOCK, passes, BLOCK)

    time = time_once(launch, 2 if place.rehearsal else 20, place.device)
    right = bool((sums == passes * size).all())
    rate = 4.0 * programs * size * passes / time.seconds / 1e12
    text = f"{rate:.3g} TB/s from a buffer of {4 * size / 2**20:.3g} MB (triton {triton.__version__})"
    yield Finding("L2 to multiprocessors", None if right else False, text, {"terabytes_s": rate})
