"""From a case to its rows: check, time, weigh."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from watnn.bench.case import DTYPES, Case, Contender, Options, Run
from watnn.bench.limits import Limits, measure_limits
from watnn.bench.memory import MALLOC_ENVIRONMENT, peak_bytes, why_no_peak
from watnn.bench.rows import BASELINES, Environment, Row
from watnn.bench.timing import Spread, Timer, interleaved, timer_of
from watnn.bench.verify import WrongResult


def measure(case: Case, options: Options, reps: int, environment: Environment) -> Iterator[Row]:
    """The rows of one case, mode after mode.

    Every run of every contender is checked first. Raises WrongResult, naming case and contender, before any row.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(case.threads or threads)
    try:
        contenders = contenders_of(case, options)
        check(case, contenders)
        if case.measures == "memory":
            yield from _memory_rows(case, contenders, options, environment)
        else:
            timer = timer_of(options.device)
            limits = measure_limits(options.device, options.dtype)
            for mode in case.modes:
                yield from _time_rows(case, mode, contenders, options, reps, environment, timer, limits)
    finally:
        torch.set_num_threads(threads)


def contenders_of(case: Case, options: Options) -> list[Contender]:
    """What `setup` gives; once where two names of a backend, as "auto" and "native", are the same."""
    found = {(c.role, c.name, c.variant, c.backend): c for c in case.setup(options)}
    return [_without_failing_compiler(contender) for contender in found.values()]


def check(case: Case, contenders: Sequence[Contender]) -> None:
    for contender in contenders:
        for index, run in enumerate(contender.runs):
            if run.check is None:
                continue
            try:
                run.check()
            except WrongResult as error:
                what = " ".join(filter(None, (contender.name, contender.variant, contender.backend)))
                raise WrongResult(f"{case.suite}, {case.name}: {what}, draw {index}: {error}") from None


def _without_failing_compiler(contender: Contender) -> Contender:
    """A baseline of torch.compile compiles now; where that fails, it is missing, with the compiler's reason."""
    if contender.role != "compiled":
        return contender
    try:
        for run in contender.runs:
            run.modes["full"]()()
    except Exception as error:  # whatever a compiler that is not ours raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return dataclasses.replace(contender, runs=(), missing=f"torch.compile fails: {reason}")
    return contender


def _time_rows(
    case: Case,
    mode: str,
    contenders: Sequence[Contender],
    options: Options,
    reps: int,
    environment: Environment,
    timer: Timer,
    limits: Limits,
) -> list[Row]:
    """Rows of one mode: all runs of all contenders interleaved; a round of a contender is the mean over its draws."""
    contenders = [c for c in contenders if all(mode in run.modes for run in c.runs)]
    with timer.preparing():
        functions = {
            (place, index): run.modes[mode]()
            for place, contender in enumerate(contenders)
            for index, run in enumerate(contender.runs)
        }
    seconds = interleaved(functions, reps, timer)
    spreads: dict[int, Spread] = {}
    for place, contender in enumerate(contenders):
        if contender.runs:
            rounds = zip(*(seconds[place, index] for index in range(len(contender.runs))), strict=True)
            weights = [run.probability for run in contender.runs]
            spreads[place] = Spread.of([sum(w * s for w, s in zip(weights, line, strict=True)) for line in rounds])
    rows = []
    for place, contender in enumerate(contenders):
        row = _row(case, mode, contender, options, environment)
        spread, work = spreads.get(place), contender.work.get(mode)
        if spread is not None:
            row = dataclasses.replace(
                row,
                reps=reps,
                ms=1e3 * spread.median,
                ms_lower=1e3 * spread.lower,
                ms_upper=1e3 * spread.upper,
                **_calls(timer, [(run, functions[place, index]) for index, run in enumerate(contender.runs)], reps),
                **(_ratios(contender, contenders, spreads, spread.median) if contender.role == "wat" else {}),
            )
            if work is not None:
                row = dataclasses.replace(
                    row,
                    of_limit=limits.seconds(work) / spread.median,
                    gflops=work.flops / 1e9,
                    gbytes=work.bytes / 1e9,
                    limit_gflops=limits.flops / 1e9,
                    limit_gbytes=limits.bandwidth / 1e9,
                )
        rows.append(row)
    return rows


def _calls(timer: Timer, runs: Sequence[tuple[Run, Callable[[], object]]], reps: int) -> dict[str, float | str]:
    """How a contender was timed, and what its eager calls take: the mean over its draws."""
    how = {timer.how(function) for _, function in runs}
    found: dict[str, float | str] = {"timed": "events" if "events" in how else how.pop()}
    for run, function in runs:
        if (times := timer.calls(function, reps)) is not None:
            for name, seconds in zip(("host_ms", "eager_ms"), times, strict=True):
                found[name] = float(found.get(name, 0.0)) + 1e3 * run.probability * seconds
    return found


def _ratios(
    contender: Contender, contenders: Sequence[Contender], spreads: Mapping[int, Spread], median: float
) -> dict[str, float]:
    """Our median by that of each baseline: of the same variant, or of the plain layer."""
    ratios = {}
    for place, other in enumerate(contenders):
        if place in spreads and other.role in BASELINES and other.variant in ("", contender.variant):
            ratios[f"vs_{other.role}"] = median / spreads[place].median
    return ratios


def _memory_rows(case: Case, contenders: Sequence[Contender], options: Options, environment: Environment) -> list[Row]:
    """One row a contender; of its draws, the one that holds most."""
    cuda = torch.device(options.device).type == "cuda"
    reason = "" if cuda else why_no_peak()
    if reason:
        peaks: list[int | None] = [None] * len(contenders)
    else:
        peaks = peaks_of(contenders, options.device) if cuda else _peaks_of_a_process(case, options)
    saved = [_most(run.saved() for run in contender.runs if run.saved is not None) for contender in contenders]
    rows = []
    base = next((place for place, contender in enumerate(contenders) if contender.role == "plain"), None)
    for place, contender in enumerate(contenders):
        row = _row(case, "memory", contender, options, environment)
        above = {
            f"{name}_above_plain": values[place] - values[base]
            for name, values in (("saved", saved), ("peak", peaks))
            if base is not None and values[place] is not None and values[base] is not None
        }
        note = row.note or reason
        rows.append(dataclasses.replace(row, saved_bytes=saved[place], peak_bytes=peaks[place], note=note, **above))
    return rows


def peaks_of(contenders: Sequence[Contender], device: str) -> list[int | None]:
    """The peak of forward and backward of each contender, the most of its draws."""
    return [_most(peak_bytes(run.modes["full"](), device) for run in contender.runs) for contender in contenders]


def _most(values: Iterator[int]) -> int | None:
    return max(values, default=None)


def _peaks_of_a_process(case: Case, options: Options) -> list[int | None]:
    """`peaks_of` in a process whose malloc gives back what is freed (see memory)."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    request = {
        "suite": case.suite,
        "case": case.name,
        "device": options.device,
        "dtype": names[options.dtype],
        "backends": options.backends,
        "compiled": options.compiled,
        "threads": torch.get_num_threads(),
    }
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    done = subprocess.run(
        [sys.executable, "-m", "watnn.bench.peak", json.dumps(request)],
        env={**os.environ, **MALLOC_ENVIRONMENT, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def _row(case: Case, mode: str, contender: Contender, options: Options, environment: Environment) -> Row:
    names = {dtype: name for name, dtype in DTYPES.items()}
    return Row(
        suite=case.suite,
        case=case.name,
        mode=mode,
        role=contender.role,
        name=contender.name,
        variant=contender.variant,
        backend=contender.backend,
        device=torch.device(options.device).type,
        dtype=names[options.dtype],
        layout=case.layout,
        threads=torch.get_num_threads(),
        curve=case.curve,
        at=case.at,
        note=contender.missing,
        **contender.facts,
        **dataclasses.asdict(environment),
    )
