"""A worker of the GPU's check whose steps come from its environment: what `process` makes of steps that die or hang."""

import argparse
import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

from benchmarks.gpu_check.report import Finding, Report, Step, read, run_steps
from benchmarks.gpu_check.worker import NO_ROOM, UNFIT


def finds(what):
    yield Finding(what, True, "right", {"us": 1.5})


def raises(what):
    yield Finding(f"{what}, before", True, "right")
    raise ValueError("this is\nwhy")


def dies(what):
    yield from finds(f"{what}, before")
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(what):
    yield from ()
    time.sleep(60)


def fills(what):
    yield from ()
    raise OSError(errno.ENOSPC, "No space left on device")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float)
    given = parser.parse_args()
    names = json.loads(os.environ["MADE_STEPS"])
    if names == "broken":
        sys.exit("no module named missing")
    steps = [Step(name, lambda name=name: globals()[name.split()[0]](name), 3.0) for name in names]
    report = Report(given.folder, given.stage)
    report.plan(names)
    try:
        fit = run_steps(steps, report, read(given.folder, given.stage).begun, given.seconds)
    except OSError as error:
        print(error, flush=True)
        os._exit(NO_ROOM)
    os._exit(0 if fit else UNFIT)


if __name__ == "__main__":
    main()
