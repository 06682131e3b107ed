"""The command: which stages, for how long, and what is left behind."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_check import libraries, process, report, summary
from benchmarks.gpu_check.process import ROOT
from benchmarks.gpu_check.stages import BY_NAME, STAGES, Stage

_LEAST = 5.0  # seconds; no stage begins with less
_REHEARSED = 240.0  # seconds that a rehearsed stage may take: interpreters are slow
# the stages that all have to be clean for a GPU to be entered in the package's list
QUALIFYING = ("facts", "smoke", "tests", "sanitizer")

EPILOG = """stages, in their order:
{stages}

exit status: 0 everything that was run passed, 1 something failed or was not reached, 2 it could not be run or was stopped.
Findings are in RESULTS/<gpu>/check/, rows of the benchmark in RESULTS/<gpu>/, all of it in RESULTS/<gpu>-check.tar.gz."""


class CannotRun(Exception):
    """Its text is the line that says why."""


def parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {stage.name:10} {stage.seconds:4.0f} s  {stage.purpose}" for stage in STAGES)
    found = argparse.ArgumentParser(
        "python -m benchmarks.gpu_check",
        description="Everything that only a GPU can show, within a budget of seconds.",
        epilog=EPILOG.format(stages=lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--stages", nargs="+", choices=list(BY_NAME), metavar="STAGE", help="only these")
    found.add_argument(
        "--budget", type=float, default=600, metavar="SECONDS", help="of the whole run (default %(default)s)"
    )
    found.add_argument("--only-failed", action="store_true", help="only what failed or was not reached in the last run")
    found.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes: shows that it all runs")
    found.add_argument(
        "--results", type=Path, metavar="FOLDER",
        help="where to write (benchmarks/results; build/gpu_check where it is a rehearsal, whose times mean nothing)",
    )  # fmt: skip
    found.add_argument("--commit", default="", help="what is checked, for a copy of the project without .git")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    given.results = given.results or ROOT / ("build/gpu_check" if given.rehearse else "benchmarks/results")
    start = time.monotonic()
    before = signal.signal(signal.SIGTERM, _interrupt)  # `timeout` sends it: what was found is worth a summary
    try:
        return _run(given, start)
    except CannotRun as error:
        print(f"gpu_check: {error}", file=sys.stderr)
    except OSError as error:
        print(f"gpu_check: stopped, what was found is kept: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("gpu_check: interrupted, what was found is kept", file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 2


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _run(given: argparse.Namespace, start: float) -> int:
    if given.budget <= 0:
        raise CannotRun(f"--budget {given.budget:g}; a number of seconds above 0 is accepted")
    name = _rehearsal_name() if given.rehearse else _gpu_name()
    folder = given.results / name / "check"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [BY_NAME[name] for name in BY_NAME if name in (given.stages or BY_NAME)]
    wanted = _failed_before(folder, chosen) if given.only_failed else None
    print(f"{name.replace('_', ' ')}: {', '.join(stage.name for stage in chosen)}; {given.budget:.0f} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="wat-gpu-check-") as scratch:
        if given.rehearse:
            _build_emulator(Path(scratch))
        else:
            libraries.build_missing(folder, given.budget - (time.monotonic() - start))
        about = _about(given)
        begun: list[Stage] = []
        try:
            for stage in chosen:
                if wanted is None or wanted.get(stage.name):
                    left = _REHEARSED if given.rehearse else given.budget - (time.monotonic() - start)
                    if left < _LEAST:
                        print(f"{stage.name:10} not begun: the budget is used up", flush=True)
                        continue
                    _stage(stage, given, folder, Path(scratch), about, wanted, left)
                begun.append(stage)
        finally:  # of an interrupted run, too
            kept = _conclude(given.results, name, folder, time.monotonic() - start)
    if not given.rehearse:
        _qualify(folder)
    if not kept:
        return 2
    return 0 if all(_is_right(stage, stage in begun, report.read(folder, stage.name)) for stage in chosen) else 1


def _is_right(stage: Stage, begun: bool, record: report.Record) -> bool:
    """Whether a stage leaves nothing to run again."""
    return (begun and record.clean) or (stage.open_ended and not record.failed)


def _conclude(results: Path, name: str, folder: Path, seconds: float) -> bool:
    """Prints the summary and makes the archive. Returns whether that could be written."""
    lines = summary.lines(folder, name, seconds)
    print("\n".join(lines))
    try:
        (folder / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"all of it: {archive(results, name)}")
    except OSError as error:
        print(f"gpu_check: the archive is not written, {folder} has what was found: {error}", file=sys.stderr)
        return False
    return True


def _stage(
    stage: Stage,
    given: argparse.Namespace,
    folder: Path,
    scratch: Path,
    about: dict[str, str],
    wanted: dict[str, list[str]] | None,
    left: float,
) -> None:
    """Runs it and prints one line."""
    seconds = left if given.rehearse else min(stage.seconds, left)
    arguments = ["--results", str(given.results)]
    if given.rehearse:
        arguments.append("--rehearse")
    if wanted is None:
        report.path_of(folder, stage.name).unlink(missing_ok=True)
        process.log_of(folder, stage.name).unlink(missing_ok=True)
    else:
        report.forget(folder, stage.name)
        names = scratch / f"{stage.name}.json"
        names.write_text(json.dumps(wanted[stage.name]))
        arguments += ["--wanted", str(names)]
    report.Report(folder, stage.name).about(about)
    paths = [str(ROOT), str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if given.commit:
        environment["WAT_COMMIT"] = given.commit
    if given.rehearse:
        from benchmarks.gpu_check import rehearsal

        environment.update(rehearsal.environment(stage.rehearsal, scratch))
    else:
        environment.update(libraries.triton_cache())
    outcome = process.run(stage, arguments, folder, seconds, environment)
    record = report.read(folder, stage.name)
    found = summary.counts(record)
    print(f"{stage.name:10} {outcome.how}, {found}, {outcome.seconds:.0f} s", flush=True)


def _failed_before(folder: Path, stages: Sequence[Stage]) -> dict[str, list[str]]:
    """By stage, the names of what failed or was not reached; a stage that never ran is missing as a whole."""
    found: dict[str, list[str]] = {}
    for stage in stages:
        record = report.read(folder, stage.name)
        names = {*record.missing, *(name for step, finding in record.failed for name in (step, finding.what))}
        if process.STAGE in names:
            names |= set(record.planned)
        found[stage.name] = sorted(names)
    if not any(report.path_of(folder, stage.name).exists() for stage in stages):
        raise CannotRun(f"--only-failed reads the last run, and there is none in {folder}")
    return found


def _gpu_name() -> str:
    """As a folder. Raises CannotRun where torch finds no GPU, with what the driver says."""
    import torch
    from watnn.bench.store import folder_name

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
        try:
            if there:
                return folder_name(torch.cuda.get_device_name(0))
        except RuntimeError as error:
            raise CannotRun(f"the GPU cannot be used: {report.first_line(error)}") from None
    why = next((f" ({report.first_line(one.message)})" for one in said if isinstance(one.message, Warning)), "")
    raise CannotRun(f"torch finds no GPU here{why}; nothing was checked. --rehearse runs everything on the CPU")


def _rehearsal_name() -> str:
    return "rehearsal"


def _build_emulator(scratch: Path) -> None:
    from benchmarks.gpu_check import rehearsal

    try:
        rehearsal.build(scratch)
    except RuntimeError as error:
        raise CannotRun(str(error)) from None


def _about(given: argparse.Namespace) -> dict[str, str]:
    """What is checked: of two findings with the same answer both are about the same kernels on the same GPU."""
    from watnn.bench.rows import commit

    from wat_kernels.gpu_record import Gpu

    if given.rehearse:
        return {"commit": given.commit or commit()}
    return {**Gpu.of(0)._asdict(), "commit": given.commit or commit()}


def _qualify(folder: Path) -> None:
    """Enters this GPU in the package's list where all that has to pass has passed, with the kernels as they are now."""
    from wat_kernels.gpu_record import QUALIFIED_GPUS, Gpu, enter_run

    gpu = Gpu.of(0)
    records = {name: report.read(folder, name) for name in QUALIFYING}
    for name, record in records.items():
        told = [{key: value for key, value in about.items() if key != "commit"} for about in record.about]
        if not record.clean or any(about != gpu._asdict() for about in told):
            print(f"not entered in {QUALIFIED_GPUS.name}: {name} is not clean for these kernels on this GPU")
            return
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    commit = records[QUALIFYING[-1]].about[-1]["commit"]
    enter_run(gpu, now, commit)
    print(f"entered in {QUALIFIED_GPUS}: auto takes cuda and triton on such GPUs from now on")


def archive(results: Path, name: str) -> Path:
    """Everything of this machine, in one file beside its folder."""
    path = results / f"{name}-check.tar.gz"
    part = path.with_name(path.name + ".part")
    try:
        with tarfile.open(part, "w:gz") as tar:
            tar.add(results / name, arcname=name)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
