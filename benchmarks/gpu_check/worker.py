"""The process of one stage: `python -m benchmarks.gpu_check.worker STAGE FOLDER ...`, started by `process`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.report import Finding, Report, read, run_steps
from benchmarks.gpu_check.stages import BY_NAME

UNFIT = 3  # exit status: the GPU refuses this process, another one is to go on
CACHE = "Triton's cache"  # the finding of each process of a stage
NO_ROOM = 4  # exit status: findings cannot be written


def main() -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=BY_NAME)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--wanted", type=Path, help="a JSON file with the names of what is to be run")
    arguments = parser.parse_args()
    stage = BY_NAME[arguments.stage]
    device = "cpu" if arguments.rehearse else "cuda"
    wanted = frozenset(json.loads(arguments.wanted.read_text())) if arguments.wanted else None
    place = Place(arguments.folder, arguments.results, device, arguments.rehearse, arguments.seconds, wanted)
    if arguments.rehearse:
        from benchmarks.gpu_check.rehearsal import prepare

        prepare(stage.rehearsal)
    else:
        import torch

        torch.backends.cudnn.benchmark = True  # the plain layer at its best
    counted = _kernel_counter()
    steps = stage.steps(place)
    report = Report(arguments.folder, stage.name)
    done = read(arguments.folder, stage.name).begun
    try:
        report.plan([step.what for step in steps])
        steps = [step for step in steps if place.wants(step.what)]
        fit = run_steps(steps, report, set(done), arguments.seconds - (time.monotonic() - started))
        if counted is not None and not arguments.rehearse:
            hits, misses = counted()
            text = f"{hits} Triton kernels were compiled before, {misses} were not"
            report.add(CACHE, Finding(CACHE, None, text, {"hits": hits, "misses": misses}))
    except OSError as error:
        print(f"{stage.name}: {error}", file=sys.stderr)
        return NO_ROOM
    return 0 if fit else UNFIT


def _kernel_counter() -> Callable[[], tuple[int, int]] | None:
    try:
        from benchmarks.gpu_check.precompile import install_counter

        return install_counter()
    except ImportError:  # there is no Triton
        return None


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a GPU that hangs or refuses would keep the interpreter in its clean-up
