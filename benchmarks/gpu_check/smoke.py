"""Every kernel of both GPU backends against the reference: the battery of `watnn check`, a step for each of its cases.

Nothing is tuned: each problem runs with the configuration that would be tried first. All others run in `tests`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from watnn.check.battery import Probe, probes

from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.report import Finding, Step
from wat_kernels import triton_launch

BACKENDS = ("cuda", "triton")


def steps(place: Place) -> Sequence[Step]:
    found = probes(place.device, backends=BACKENDS, sizes="tiny" if place.rehearsal else "usual")
    if place.rehearsal:  # an interpreted kernel takes seconds
        found = (
            probe for probe in found if probe.dtype == torch.float32 and (probe.backend == "cuda" or probe.case.exact)
        )
    return [Step(what_of(probe), lambda probe=probe: _compared(probe)) for probe in found]


def what_of(probe: Probe) -> str:
    dtype = str(probe.dtype).removeprefix("torch.")
    return f"{probe.layer}, {probe.backend}, {dtype}: {probe.what}, x {'x'.join(map(str, probe.case.x))}"


def _compared(probe: Probe) -> Iterator[Finding]:
    with triton_launch.choosing(lambda kernel, suited: suited[0]):
        found = probe.run()
    numbers = {"layer": found.layer, "backend": found.backend, "dtype": found.dtype, "seconds": found.seconds}
    if found.error is not None:
        numbers["error"] = found.error
    text = found.message or f"equal, error {found.error:.2g} of what is allowed"
    yield Finding(what_of(probe), found.passed, text, numbers)
    if not found.passed and probe.device.type == "cuda":
        torch.cuda.synchronize(probe.device)  # raises where the GPU refuses this process from now on
