"""The stages: what each is for, how long it may take, and how its kernels run in a rehearsal."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.report import Step


class Stage(NamedTuple):
    """One process of the check. Its module, `benchmarks.gpu_check.<name>`, has `steps(place) -> Sequence[Step]`.

    seconds:   its limit; less where less is left of the whole budget
    rehearsal: "interpreter": Triton interprets and CUDA kernels are emulated; "stub": Triton compiles for an H100 and a
               driver that does nothing launches (see benchmarks/host_time.py)
    open_ended: it has more steps than there is time for, and what was not reached is nothing that failed
    """

    name: str
    seconds: float
    rehearsal: str
    purpose: str
    open_ended: bool = False

    def steps(self, place: Place) -> Sequence[Step]:
        return importlib.import_module(f"benchmarks.gpu_check.{self.name}").steps(place)


# in the order in which they run; the benchmark takes what is left of the budget
STAGES = (
    Stage("facts", 15, "stub", "versions, rates of the machine, host time of small layers"),
    Stage("smoke", 60, "interpreter", "every kernel, dtype and kind of draw against the reference"),
    Stage("speed", 90, "interpreter", "ten layers against their baselines, eager and as graphs"),
    Stage("tests", 200, "interpreter", "the GPU's test suites"),
    Stage("sanitizer", 120, "interpreter", "compute-sanitizer's memcheck and racecheck on small problems"),
    Stage(
        "tuning", 90, "stub", "the time of every configuration of every Triton kernel, its registers and instructions"
    ),
    Stage("counters", 80, "interpreter", "hardware counters of six kernels, by ncu"),
    Stage("benchmark", 600, "interpreter", "the benchmark's cases, those first that tell most", True),
)
BY_NAME = {stage.name: stage for stage in STAGES}
