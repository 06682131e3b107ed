"""Steps, what they find, and the files in which findings are kept.

A stage's file, <folder>/<stage>.jsonl, has a line for each event, written at once: the steps that are planned, a step that
begins, a finding, a step that ends. So a process that dies in a step leaves everything it found, and the name of that step.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True)
class Finding:
    """What a step found.

    what:    unique in its stage, where `passed` is False: `--only-failed` asks for it by this name
    passed:  whether it is as it has to be; None for a fact or a measurement, which is neither
    text:    for people: the value with its unit, or what is wrong in one line
    numbers: for programs: values by name, with the unit in the name ("kernel_us", "tflops")
    """

    what: str
    passed: bool | None
    text: str
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)


class Step(NamedTuple):
    """A part of a stage that can fail alone.

    what:    unique in its stage
    run:     yields findings; an exception is a failed finding
    seconds: after which the step is taken to hang, its process is ended, and the next one begins
    """

    what: str
    run: Callable[[], Iterator[Finding]]
    seconds: float = 30.0


@dataclass
class Record:
    """What a stage's file says.

    planned, begun, ended: steps in their order
    findings:              with the step that found each
    under_way:             (the step that began last and did not end, the seconds it may take), or None
    about:                 what was checked: the GPU, the versions and the kernels, see `process`
    """

    planned: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    findings: list[tuple[str, Finding]] = field(default_factory=list)
    under_way: tuple[str, float] | None = None
    about: list[Mapping[str, str]] = field(default_factory=list)

    @property
    def failed(self) -> list[tuple[str, Finding]]:
        return [(step, finding) for step, finding in self.findings if finding.passed is False]

    @property
    def missing(self) -> list[str]:
        """Steps that were planned and not reached."""
        return [step for step in self.planned if step not in self.ended]

    @property
    def clean(self) -> bool:
        """Whether everything that was planned was run, and nothing failed."""
        return bool(self.planned) and not self.missing and not self.failed


def path_of(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.jsonl"


def read(folder: Path, stage: str) -> Record:
    """What is there; a last line that was cut off says nothing."""
    record = Record()
    path = path_of(folder, stage)
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            _take(record, json.loads(line))
        except (ValueError, KeyError, TypeError):
            continue
    return record


def _take(record: Record, event: dict) -> None:
    kind = event["event"]
    if kind == "plan":
        record.planned = list(event["steps"])
    elif kind == "about":
        record.about.append(event["about"])
    elif kind == "begin":
        record.begun.append(event["step"])
        record.under_way = (event["step"], event["seconds"])
    elif kind == "end":
        record.ended.append(event["step"])
        record.under_way = None
    else:
        record.findings.append((event["step"], Finding(**event["finding"])))


class Report:
    """Writes a stage's file. Raises OSError where it cannot, a full disk for example."""

    def __init__(self, folder: Path, stage: str):
        self._path = path_of(folder, stage)

    def about(self, about: Mapping[str, str]) -> None:
        self._write("about", about=dict(about))

    def plan(self, steps: Sequence[str]) -> None:
        self._write("plan", steps=list(steps))

    def begin(self, step: Step) -> None:
        self._write("begin", step=step.what, seconds=step.seconds)

    def end(self, step: str) -> None:
        self._write("end", step=step)

    def add(self, step: str, finding: Finding) -> None:
        self._write("finding", step=step, finding=asdict(finding))

    def _write(self, event: str, **more: object) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **more}, default=str)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def forget(folder: Path, stage: str) -> None:
    """Takes the steps that failed or were not reached out of a stage's file, so that they can be run again."""
    path = path_of(folder, stage)
    record = read(folder, stage)
    again = {step for step, _ in record.failed} | set(record.missing)
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("step") not in again:
            kept.append(line + "\n")
    if path.exists():
        path.write_text("".join(kept), encoding="utf-8")


def run_steps(steps: Sequence[Step], report: Report, done: Collection[str], seconds: float) -> bool:
    """Runs the steps that are not `done`; none begins after `seconds`. Returns whether the process is fit to go on.

    After an exception the GPU is asked whether it still works: an illegal access ends all later calls of the process, so
    the rest must be run by another one.
    """
    deadline = time.monotonic() + seconds
    for step in steps:
        if step.what in done:
            continue
        if time.monotonic() > deadline:
            return True
        report.begin(step)
        healthy = True
        try:
            for finding in step.run():
                report.add(step.what, finding)
        except OSError:  # of the report, or of a command that cannot be run: there is no going on
            raise
        except Exception as error:
            report.add(step.what, Finding(step.what, False, f"{type(error).__name__}: {first_line(error)}"))
            healthy = _gpu_works()
        report.end(step.what)
        if not healthy:
            return False
    return True


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")


def _gpu_works() -> bool:
    torch = sys.modules.get("torch")  # not imported here: a stage that has no use for it has no GPU either
    try:
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return True
    except RuntimeError:
        return False
