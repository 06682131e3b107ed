"""Rows, cases and a clock that are made up, so that what is computed of them is known."""

import contextlib

from watnn.bench.case import Case, Contender, Run
from watnn.bench.rows import Environment, Row

ENVIRONMENT = Environment(
    machine="A Machine", cpu="A Machine", isa="avx2", commit="abc", version="0.1", torch="2.13.0", triton="none",
    python="3.11", time="2026-01-01T00:00:00Z", command="watnn bench",
)  # fmt: skip


class Clock:
    """A timer of functions that return how many seconds they take; `log` has every call in order."""

    def __init__(self):
        self.log = []

    def warm_up(self, function):
        self.log.append(("warm", function()))

    def round(self, functions):
        seconds = [function() for function in functions]
        self.log += [("time", value) for value in seconds]
        return seconds

    def preparing(self):
        return contextlib.nullcontext()

    def how(self, function):
        return "graph"

    def calls(self, function, reps):
        """Of a call, 1 s of the host and 2 s in all."""
        return 1.0, 2.0


def run_of(*seconds, probability=1.0, **keywords):
    """A run whose first timed call takes seconds[0], and so on, in every mode; the call before is the warm-up."""

    def prepare():
        values = iter((seconds[0], *seconds))
        return lambda: next(values)

    return Run({mode: prepare for mode in ("forward", "backward", "full")}, probability, **keywords)


def case_of(*contenders: Contender, **keywords) -> Case:
    return Case("conv", "a case", lambda options: contenders, **keywords)


def row(**keywords) -> Row:
    base = {
        "suite": "conv", "case": "a case", "mode": "full", "role": "wat", "name": "WATConv2d", "variant": "translate",
        "backend": "native", "device": "cpu", "dtype": "fp32", "layout": "channels_last", "threads": 2, "ms": 1.0,
        "ms_lower": 0.9, "ms_upper": 1.2,
    }  # fmt: skip
    base.update(vars(ENVIRONMENT))
    return Row(**{**base, **keywords})
