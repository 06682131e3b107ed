"""compute-sanitizer over the CUDA kernels and one fixed configuration of each Triton kernel, on small problems."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.process import ROOT
from benchmarks.gpu_check.report import Finding, Step

TOOLS = ("memcheck", "racecheck")
_FOUND = 9  # exit status that the sanitizer is asked for where it found something
_SUMMARY = re.compile(r"(ERROR SUMMARY|RACECHECK SUMMARY): (.*)")
_STAND_IN = Path(__file__).parent / "stand_ins" / "compute-sanitizer"


def steps(place: Place) -> Sequence[Step]:
    each = place.seconds / len(TOOLS)
    return [Step(tool, lambda tool=tool: _watched(place, tool), each) for tool in TOOLS]


def sanitizer(rehearsal: bool) -> Path | None:
    """The tool of PATH or of the toolkit; in a rehearsal one that only runs the command."""
    if rehearsal:
        return _STAND_IN
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")
    return Path(found) if found else None


def _watched(place: Place, tool: str) -> Iterator[Finding]:
    program = sanitizer(place.rehearsal)
    if program is None:
        yield Finding(tool, False, "compute-sanitizer is neither in PATH nor in CUDA_HOME/bin")
        return
    log = place.folder / f"{tool}.log"
    run = [sys.executable, "-m", "benchmarks.gpu_check.small_run", *(["--rehearse"] if place.rehearsal else [])]
    command = [str(program), "--tool", tool, "--error-exitcode", str(_FOUND), *run]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that the bounds of each tensor are known
    with log.open("w") as file:
        status = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
    text = log.read_text(errors="replace")
    summary = _SUMMARY.search(text)
    calls = re.search(r"(\d+) calls, forward and backward", text)
    # "0 errors" is worth something only where the program came to its end
    passed = status == 0 and summary is not None and calls is not None
    said = summary[2] if summary else "no summary of the sanitizer"
    ran = calls[0] if calls else "the small run did not come to its end"
    yield Finding(tool, passed, f"{said}; {ran}; exit status {status}")
