"""The suites of tests that need a GPU (tests/gpu/suites.py), in one run of pytest; a finding for each test that fails."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu_check import told
from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.process import ROOT
from benchmarks.gpu_check.report import Finding, Step
from tests.gpu.suites import SUITES

# the finding of a run that did not come to its end, so that `--only-failed` runs all that did not pass
UNFINISHED = "all tests"
_PROCESSES = max(2, min(12, (os.cpu_count() or 2) - 4))  # what takes the time is compiling
# of a test process: the reference computes on the CPU, too, and processes with a thread for each core wait for each other
_THREADS = max(1, (os.cpu_count() or 1) // _PROCESSES)
_TO_STOP = 6.0  # seconds that pytest and its processes have to stop
_POLL = 0.1  # seconds
_LONGEST = 5  # tests whose times are told


def steps(place: Place) -> Sequence[Step]:
    return [Step("pytest", lambda: _pytest(place), place.seconds)]


def _pytest(place: Place) -> Iterator[Finding]:
    again = () if place.wanted is None or UNFINISHED in place.wanted else sorted(place.wanted)
    chosen = [name for name in again if "::" in name or name.endswith(".py")]
    paths = chosen or list(SUITES)
    if place.rehearsal:  # everything is collected; what needs a GPU says so
        yield from _run(place, "collection", [*paths, "--collect-only"], ())
        paths = ["tests/gpu"]
    parallel = ["-n", str(_PROCESSES)] if not place.rehearsal and importlib.util.find_spec("xdist") else []
    passed = () if chosen or place.wanted is None else _passed(place.folder / "pytest.jsonl")
    yield from _run(place, "pytest", [*paths, *parallel], passed)


def _passed(path: Path) -> list[str]:
    """The tests that have passed, of an earlier run that was cut off."""
    last = {one.test: one.outcome for one in told.read(path)}
    return sorted(test for test, outcome in last.items() if outcome != "failed")


def _run(place: Place, what: str, arguments: Sequence[str], leave_out: Sequence[str]) -> Iterator[Finding]:
    """A finding for each test that fails, as soon as it has failed, and one for the whole."""
    log, lines, left_out = (place.folder / f"{what}.{ending}" for ending in ("log", "jsonl", "left_out.json"))
    left_out.write_text(json.dumps(leave_out))
    if not leave_out:
        lines.unlink(missing_ok=True)
    before = len(told.read(lines))
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu_check.told", "-p", "no:cacheprovider", "--tb=short",
        "--continue-on-collection-errors", "-m", "not long", *arguments,
    ]  # fmt: skip
    environment = {
        **os.environ, "WAT_TEST_DEVICE": place.device, "WAT_TOLD": str(lines), "WAT_LEAVE_OUT": str(left_out),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic
        "OMP_NUM_THREADS": str(_THREADS),
    }  # fmt: skip
    environment.pop("TRITON_INTERPRET", None)
    deadline = place.started + place.seconds - _TO_STOP
    counts: Counter[str] = Counter()
    longest: list[tuple[float, str]] = []
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        running = True
        while running:
            running = process.poll() is None and time.monotonic() < deadline
            news = told.read(lines)[before:]  # after it was seen to have ended, everything that it told
            before += len(news)
            for one in news:
                counts[one.outcome] += 1
                longest = sorted([*longest, (one.seconds, one.test)], reverse=True)[:_LONGEST]
                if one.outcome == "failed":
                    yield Finding(one.test, False, one.text)
            if running:
                time.sleep(_POLL)
        status = _end(process)
    if status not in (0, 1):  # neither passed nor merely with failures: stopped, or broken
        yield Finding(UNFINISHED, False, f"pytest ended with {status}, see {log.name} and {lines.name}")
    numbers = dict(counts)
    text = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    if not text:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        text = said[-1].strip("= ") if said else "it printed nothing"
    yield Finding(what, status == 0, f"{text} (exit status {status})", numbers)
    if longest and longest[0][0] > 0:
        slow = ", ".join(f"{test} {seconds:.1f} s" for seconds, test in longest)
        yield Finding(f"{what}: the longest", None, slow)


def _end(process: subprocess.Popen) -> int:
    """The exit status of pytest, which is stopped where it runs still."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_TO_STOP / 2)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()
