"""Hardware counters of six kernels, read by ncu: what each of them waits for.

python -m benchmarks.gpu_check.counters --kernel "conv forward"    # runs that kernel a few times, for ncu to watch
"""

from __future__ import annotations

import argparse
import csv
import glob
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.process import ROOT
from benchmarks.gpu_check.report import Finding, Step


class Kernel(NamedTuple):
    """name: for people; function: a regular expression for its name on the GPU; layer, backend, step: what launches it"""

    name: str
    function: str
    layer: str
    backend: str
    step: str


KERNELS = (
    Kernel("conv forward", "conv2d_fwd_kernel", "conv", "triton", "forward"),
    Kernel("conv weight gradient", "conv2d_bwd_weight_kernel", "conv", "triton", "weight gradient"),
    Kernel("linear forward, many rows", "linear_fwd_kernel", "many rows", "triton", "forward"),
    Kernel("depthwise forward", "depthwise_gather.*", "depthwise", "cuda", "forward"),
    Kernel("linear forward, few rows", "linear_forward.*", "few rows", "cuda", "forward"),
    Kernel("conv data gradient", "conv2d_bwd_data_kernel", "conv", "triton", "data gradient"),
)
# ncu's own sets of metrics, which it has for every chip
_SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "SchedulerStats", "WarpStateStats",
             "Occupancy", "LaunchStats")  # fmt: skip
# Asked for by name besides: sections differ between versions of ncu. On a 9.0 GPU instructions that are executed say little
# of the tensor pipe, since one of a warp group keeps it busy for many cycles; cycles in which it is active do.
_METRICS = (
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
)
# what the summary says: the metric that matches the first pattern that any matches
_TOLD = {
    "us": (r"gpu__time_duration\.sum$",),
    "tensor %": (
        r"sm__pipe_tensor_cycles_active(_v2)?\.avg\.pct_of_peak_sustained_active$",
        r"sm__pipe_tensor_op_hmma_cycles_active(_v2)?\.avg\.pct_of_peak_sustained_active$",
    ),
    "L2 %": (r"lts__throughput\.avg\.pct_of_peak_sustained_elapsed$",),
    "L2 hits %": (r"lts__t_sector_hit_rate\.pct$",),
    "DRAM %": (r"(gpu__dram|dram_)_throughput\.avg\.pct_of_peak_sustained_elapsed$",),
    "issue %": (
        r"smsp__issue_active\.avg\.pct_of_peak_sustained_active$",
        r"sm__inst_issued\.avg\.pct_of_peak_sustained_active$",
    ),
    "occupancy %": (r"sm__warps_active\.avg\.pct_of_peak_sustained_active$",),
    "registers": (r"launch__registers_per_thread$",),
}
_STALL = re.compile(r"smsp__average_warps?_(?:latency_)?issue_stalled_(\w+?)(?:_per_issue_active)?\.ratio$")
_NO_STALL = ("selected",)  # the warp that issues
_WARM_UPS = 3
_STAND_IN = Path(__file__).parent / "stand_ins" / "ncu"
_PLACES = ("/opt/nvidia/nsight-compute/*/ncu",)


def steps(place: Place) -> Sequence[Step]:
    kernels = KERNELS[:1] if place.rehearsal else KERNELS
    return [Step(kernel.name, partial(_counted, place, kernel), 25) for kernel in kernels]


def ncu(rehearsal: bool) -> Path | None:
    """The tool of PATH, of the toolkit, or of Nsight Compute's own folder, the newest; in a rehearsal a stand-in."""
    if rehearsal:
        return _STAND_IN
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("ncu") or shutil.which("ncu", path=f"{home}/bin")
    others = sorted(path for pattern in _PLACES for path in glob.glob(pattern))
    return Path(found or others[-1]) if found or others else None


def _counted(place: Place, kernel: Kernel) -> Iterator[Finding]:
    program = ncu(place.rehearsal)
    if program is None:
        yield Finding(kernel.name, False, f"ncu is not in PATH, CUDA_HOME/bin, or {', '.join(_PLACES)}")
        return
    log = place.folder / f"ncu, {kernel.name}.log".replace(" ", "_").replace(",", "")
    asked = ["--metrics", ",".join(_METRICS)]
    status, metrics = _watched(program, kernel, asked, log, place.rehearsal)
    names = [metric.partition(".")[0] for metric in _METRICS]
    if not metrics and any(name in log.read_text(errors="replace") for name in names):  # one is unknown to this ncu
        status, metrics = _watched(program, kernel, [], log, place.rehearsal)
    if status or not metrics:
        yield Finding(kernel.name, False, f"ncu ended with {status} and {len(metrics)} metrics: {_complaint(log)}")
        return
    told, stalls = told_of(metrics), stalls_of(metrics)
    waits = ", ".join(f"{reason} {cycles:.1f}" for reason, cycles in list(stalls.items())[:3])
    text = ", ".join(f"{name} {value:.4g}" for name, value in told.items()) + f"; stalls, cycles: {waits}"
    yield Finding(kernel.name, None, text, {**told, **{f"stall {name}": value for name, value in stalls.items()}})
    yield Finding(f"{kernel.name}: all metrics", None, f"{len(metrics)}", metrics)


def _watched(
    program: Path, kernel: Kernel, asked: Sequence[str], log: Path, rehearsal: bool
) -> tuple[int, dict[str, float]]:
    """(exit status of ncu, its metrics). asked: options that ask for metrics besides those of the sections"""
    sections = [part for section in _SECTIONS for part in ("--section", section)]
    run = [sys.executable, "-m", "benchmarks.gpu_check.counters", "--kernel", kernel.name]
    command = [
        str(program), "--clock-control", "none", "--csv", "--page", "raw", "--kernel-name", f"regex:{kernel.function}",
        "--launch-skip", str(_WARM_UPS), "--launch-count", "1", *sections, *asked, *run,
        *(["--rehearse"] if rehearsal else []),
    ]  # fmt: skip
    with log.open("w") as file:
        status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
    return status, metrics_of(log.read_text(errors="replace"))


def metrics_of(text: str) -> dict[str, float]:
    """Numbers by the name of the metric, of the first kernel in ncu's raw page: a line of names, one of units, then kernels.

    Times are in microseconds, whatever the unit that ncu chose.
    """
    lines = [line for line in text.splitlines() if line.startswith('"')]
    start = next((place for place, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None or len(lines) < start + 3:
        return {}
    names, units, values = csv.reader(lines[start : start + 3])
    found = {}
    for name, unit, value in zip(names, units, values, strict=False):
        try:
            number = float(value.replace(",", ""))
        except ValueError:
            continue
        scale = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}.get(unit, 1.0)
        found[name] = number * scale
    return found


def told_of(metrics: Mapping[str, float]) -> dict[str, float]:
    found = {}
    for name, patterns in _TOLD.items():
        matching = (value for pattern in patterns for metric, value in metrics.items() if re.match(pattern, metric))
        if (first := next(matching, None)) is not None:
            found[name] = first
    return found


def stalls_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """Why warps wait, in cycles for each instruction issued, the longest first."""
    matches = ((_STALL.match(name), value) for name, value in metrics.items())
    found = {match[1]: value for match, value in matches if match and match[1] not in _NO_STALL}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _complaint(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    said = (
        [line for line in lines if line.startswith("==ERROR==")]
        or [line for line in lines if line]
        or ["it printed nothing"]
    )
    return said[-1][:300]


def main() -> None:
    """Runs one kernel a few times: first as warm-ups, then the one that ncu looks at."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", required=True, choices=[kernel.name for kernel in KERNELS])
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny")
    given = parser.parse_args()
    kernel = next(kernel for kernel in KERNELS if kernel.name == given.kernel)
    if given.rehearse:
        from benchmarks.gpu_check.rehearsal import prepare

        prepare("interpreter")
    from wat_kernels import triton_launch

    run = _run_of(kernel, given.rehearse)
    with triton_launch.choosing(lambda name, suited: suited[0]):  # nothing is measured while ncu watches
        for _ in range(_WARM_UPS + 1):
            run()


def _run_of(kernel: Kernel, rehearsal: bool) -> Callable[[], object]:
    import torch
    from watnn.bench.shapes import Shape
    from watnn.bench.suites.linear import Shape as LinearShape

    from benchmarks.gpu_check.passes import conv2d_passes, linear_passes
    from wat_kernels import Noise

    device, dtype = ("cpu", torch.float32) if rehearsal else ("cuda", torch.bfloat16)
    if kernel.layer in ("conv", "depthwise"):
        shape = Shape(144, 56, batch=128, depthwise=True) if kernel.layer == "depthwise" else Shape(128, 28, batch=128)
        if rehearsal:
            shape = Shape(2, 3, batch=1)
        return conv2d_passes(kernel.backend, shape, device, dtype)[kernel.step]
    rows = LinearShape(4096, 4096, 16 if kernel.layer == "few rows" else 1024)
    return linear_passes(kernel.backend, rows, Noise("dropconnect", 0.3), device, dtype)[kernel.step]


if __name__ == "__main__":
    main()
