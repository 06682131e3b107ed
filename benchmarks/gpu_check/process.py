"""Runs one stage in processes of its own, within its limit: what dies or hangs costs one step."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu_check.report import Finding, Record, Report, path_of, read
from benchmarks.gpu_check.stages import Stage
from benchmarks.gpu_check.worker import NO_ROOM, UNFIT

ROOT = Path(__file__).parents[2]
_POLL = 0.05  # seconds
_GRACE = 2.0  # seconds between asking a process to end and ending it
_STARTS = 8  # processes of a stage: a step that dies costs an import of torch
STAGE = "the stage itself"  # the step that is blamed where none had begun


class Outcome(NamedTuple):
    """How a stage ended: "done", "out of time", or "broken" where its process died outside of any step."""

    how: str
    seconds: float


class _End(NamedTuple):
    """Of a process: its exit status, None where it was ended; what there is to say of the step it was in."""

    status: int | None
    why: str
    out_of_time: bool = False


def run(
    stage: Stage,
    arguments: Sequence[str],
    folder: Path,
    seconds: float,
    environment: Mapping[str, str],
    worker: str = "benchmarks.gpu_check.worker",
) -> Outcome:
    """Raises OSError with ENOSPC or the like where nothing more can be written. On KeyboardInterrupt the process ends, too.

    arguments: for the worker, besides the stage, the folder and the seconds
    """
    start, report = time.monotonic(), Report(folder, stage.name)

    def outcome(how: str) -> Outcome:
        return Outcome(how, time.monotonic() - start)

    for _ in range(_STARTS):
        left = seconds - (time.monotonic() - start)
        if left <= 0:
            return outcome("out of time")
        command = [sys.executable, "-m", worker, stage.name, str(folder), "--seconds", f"{left:.1f}", *arguments]
        end = _watch(stage.name, command, folder, left, environment)
        if end.status == NO_ROOM:
            raise OSError(errno.ENOSPC, f"{stage.name} could not write: {_last_line(log_of(folder, stage.name))}")
        if end.out_of_time:  # the step that was under way was not reached; it is nothing that failed
            return outcome("out of time")
        record = read(folder, stage.name)
        if end.status == 0:
            reached = all(step in record.ended for step in record.planned)
            return outcome("done" if reached else "out of time")
        if record.under_way is not None:
            step = record.under_way[0]
            report.add(step, Finding(step, False, end.why))
            report.end(step)
        elif end.status != UNFIT:  # it died before its first step or between two
            report.add(STAGE, Finding(STAGE, False, end.why))
            break
    return outcome("broken")


def log_of(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.log"


def _watch(stage: str, command: Sequence[str], folder: Path, seconds: float, environment: Mapping[str, str]) -> _End:
    deadline = time.monotonic() + seconds
    log = log_of(folder, stage)
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(environment), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            return _wait(stage, process, folder, deadline, log)
        finally:
            stop(process)


def _wait(stage: str, process: subprocess.Popen, folder: Path, deadline: float, log: Path) -> _End:
    seen, record, since = -1, Record(), time.monotonic()
    while (status := process.poll()) is None:
        now = time.monotonic()
        size = path_of(folder, stage).stat().st_size if path_of(folder, stage).exists() else 0
        if size != seen:
            seen, before, record = size, record.under_way, read(folder, stage)
            since = since if record.under_way == before else now
        if now > deadline:
            return _End(None, "", out_of_time=True)
        if record.under_way is not None and now - since > record.under_way[1]:
            return _End(None, f"did not end within {record.under_way[1]:.0f} s: taken to hang")
        time.sleep(_POLL)
    if status < 0:
        return _End(status, f"the process died of {signal.Signals(-status).name}: {_last_line(log)}")
    return _End(status, f"the process ended with {status}: {_last_line(log)}" if status else "")


def stop(process: subprocess.Popen) -> None:
    """Ends a process and what it started, which are a group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):  # the second one for children that outlived the first
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"
