"""What this machine is and what it can do at most; whether the libraries load; what a call costs its host."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence

import torch
from watnn.bench.limits import measure_limits
from watnn.info import versions

from benchmarks import host_time
from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.report import Finding, Step
from wat_kernels.extension import LIBRARIES

_QUERY = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
_CALLS = {False: 600, True: 30}  # of each layer, by whether it is a rehearsal


def steps(place: Place) -> Sequence[Step]:
    return [
        Step("versions", lambda: _versions(place)),
        Step("compiled libraries", lambda: _libraries(place)),
        Step("rates", lambda: _rates(place)),
        Step("host time", lambda: _host_time(place)),
    ]


def _versions(place: Place) -> Iterator[Finding]:
    found = {**versions(), "python": sys.version.split()[0], "CUDA": str(torch.version.cuda)}
    yield Finding("versions", None, ", ".join(f"{name} {version}" for name, version in found.items()), found)
    if place.rehearsal:
        yield Finding("GPU", None, "none: this is a rehearsal, no time means anything")
        return
    one = torch.cuda.get_device_properties(0)
    numbers = {
        "capability": f"{one.major}.{one.minor}",
        "multiprocessors": one.multi_processor_count,
        "l2_mb": one.L2_cache_size / 2**20,
        "memory_gb": one.total_memory / 1e9,
    }
    text = (
        f"{one.name}, compute capability {numbers['capability']}, {one.multi_processor_count} multiprocessors, "
        f"{numbers['l2_mb']:.0f} MB of L2, {numbers['memory_gb']:.0f} GB"
    )
    yield Finding("GPU", None, text, numbers)
    yield Finding("nvidia-smi", None, _nvidia_smi())


def _nvidia_smi() -> str:
    """Clocks, power and temperature as they are; nothing is changed."""
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot be asked: {error}"
    return f"{_QUERY}: {run.stdout.strip() or run.stderr.strip()}"


def _libraries(place: Place) -> Iterator[Finding]:
    for name, library in LIBRARIES.items():
        missing = None if place.rehearsal else False  # a rehearsal emulates them
        yield Finding(f"library {name}", library.available or missing, "loads" if library.available else library.reason)
    if not place.rehearsal and LIBRARIES["cuda"].available:
        reason = torch.ops.wat_kernels.cuda_refusal(0)
        yield Finding("CUDA kernels", not reason, reason or "run on this GPU with this driver")


def _rates(place: Place) -> Iterator[Finding]:
    dtype = torch.float32 if place.rehearsal else torch.bfloat16
    limits = measure_limits(place.device, dtype)
    numbers = {"tflops": limits.flops / 1e12, "terabytes_s": limits.bandwidth / 1e12}
    text = f"{numbers['tflops']:.3g} TFLOP/s in {str(dtype).removeprefix('torch.')}, copies at {numbers['terabytes_s']:.3g} TB/s (read and written)"
    yield Finding("rates", None, text, numbers)


def _host_time(place: Place) -> Iterator[Finding]:
    for found in host_time.measure(_CALLS[place.rehearsal]):
        numbers = {"host_us": found.microseconds, "where": found.where}
        yield Finding(found.what, None, f"{found.microseconds:.1f} us of the host for {found.what}", numbers)
