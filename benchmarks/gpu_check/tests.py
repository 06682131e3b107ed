"""The suites of tests that need a GPU (tests/gpu/suites.py), in one run of pytest; a finding for each test that fails."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence

from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.process import ROOT
from benchmarks.gpu_check.report import Finding, Step
from tests.gpu.suites import SUITES

_PROCESSES = 6
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?::.*?|\S+)(?: - (.*))?$")
_COUNTS = re.compile(r"(\d+) (passed|failed|skipped|deselected|errors?|xfailed)")


def steps(place: Place) -> Sequence[Step]:
    return [Step("pytest", lambda: _pytest(place), place.seconds)]


def _pytest(place: Place) -> Iterator[Finding]:
    chosen = [name for name in sorted(place.wanted or ()) if "::" in name or name.endswith(".py")]
    paths = chosen or list(SUITES)
    if place.rehearsal:  # everything is collected; what needs a GPU says so
        yield from _run(place, "collection", [*paths, "--collect-only"])
        paths = ["tests/gpu"]
    parallel = ["-n", str(_PROCESSES)] if not place.rehearsal and importlib.util.find_spec("xdist") else []
    yield from _run(place, "pytest", [*paths, *parallel])


def _run(place: Place, what: str, arguments: Sequence[str]) -> Iterator[Finding]:
    log = place.folder / f"{what}.log"
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", "-m", "not long", *arguments]  # fmt: skip
    environment = {**os.environ, "WAT_TEST_DEVICE": place.device, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # deterministic
    environment.pop("TRITON_INTERPRET", None)
    with log.open("w") as file:
        status = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
    lines = log.read_text(errors="replace").splitlines()
    yield from failures(lines)
    last = lines[-1].strip("= ") if lines else "pytest printed nothing"
    counts = {name: int(count) for count, name in _COUNTS.findall(last)}
    yield Finding(what, status == 0, f"{last} (exit status {status})", counts)


def failures(lines: Sequence[str]) -> Iterator[Finding]:
    """A finding for each line of pytest's summary that names a test which failed or a file that was not collected."""
    for line in lines:
        if found := _FAILED.match(line.strip()):
            yield Finding(found[1], False, found[2] or "failed")
