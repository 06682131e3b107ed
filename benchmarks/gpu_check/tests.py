"""The suites of tests that need a GPU (tests/gpu/suites.py), in one run of pytest; a finding for each test that fails."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.process import ROOT
from benchmarks.gpu_check.report import Finding, Step
from tests.gpu.suites import SUITES

UNFINISHED = "all tests"  # the finding of a run that did not come to its end, so that `--only-failed` runs all of them
_PROCESSES = max(2, min(12, (os.cpu_count() or 2) - 4))  # what takes the time is compiling
_TO_STOP = 12.0  # seconds that pytest and its processes have to stop and to say what failed
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?::.*?|\S+)(?: - (.*))?$")
_COUNTS = re.compile(r"(\d+) (passed|failed|skipped|deselected|errors?|xfailed)")


def steps(place: Place) -> Sequence[Step]:
    return [Step("pytest", lambda: _pytest(place), place.seconds)]


def _pytest(place: Place) -> Iterator[Finding]:
    again = () if place.wanted is None or UNFINISHED in place.wanted else sorted(place.wanted)
    chosen = [name for name in again if "::" in name or name.endswith(".py")]
    paths = chosen or list(SUITES)
    if place.rehearsal:  # everything is collected; what needs a GPU says so
        yield from _run(place, "collection", [*paths, "--collect-only"])
        paths = ["tests/gpu"]
    parallel = ["-n", str(_PROCESSES)] if not place.rehearsal and importlib.util.find_spec("xdist") else []
    yield from _run(place, "pytest", [*paths, *parallel])


def _run(place: Place, what: str, arguments: Sequence[str]) -> Iterator[Finding]:
    """Stops pytest before the stage's time is up, as Ctrl-C would, so that it says what had failed until then."""
    log = place.folder / f"{what}.log"
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", "-m", "not long", *arguments]  # fmt: skip
    environment = {**os.environ, "WAT_TEST_DEVICE": place.device, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # deterministic
    environment.pop("TRITON_INTERPRET", None)
    deadline = place.started + place.seconds - _TO_STOP
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                status = process.wait(_TO_STOP / 2)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
    lines = log.read_text(errors="replace").splitlines()
    yield from failures(lines)
    last = next(
        (line for line in reversed(lines) if _COUNTS.search(line)), lines[-1] if lines else "it printed nothing"
    )
    counts = {name: int(count) for count, name in _COUNTS.findall(last)}
    if status not in (0, 1):  # neither passed nor merely with failures: stopped, or broken
        yield Finding(UNFINISHED, False, f"pytest ended with {status}, see {log.name}")
    yield Finding(what, status == 0, f"{last.strip('= ')} (exit status {status})", counts)


def failures(lines: Sequence[str]) -> Iterator[Finding]:
    """A finding for each line of pytest's summary that names a test which failed or a file that was not collected."""
    for line in lines:
        if found := _FAILED.match(line.strip()):
            yield Finding(found[1], False, found[2] or "failed")
