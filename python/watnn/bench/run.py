"""`watnn bench` from its arguments to its exit status."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from watnn.bench.arguments import STREAM, Plan
from watnn.bench.bars import standings
from watnn.bench.rows import Environment
from watnn.bench.runner import measure
from watnn.bench.store import Output
from watnn.bench.table import bars_table, build_tables
from watnn.bench.verify import WrongResult

_FILE_WIDTH = 120  # of what does not go to a terminal
_INTERRUPTED = 130  # 128 + SIGINT, as a shell has it


def run(arguments: argparse.Namespace, command: str) -> int:
    """Measures and prints; returns the exit status.

    0: done; 1: a result was wrong; 2: bad arguments; 130: stopped by Ctrl-C. What was measured is written in any case.
    """
    try:
        plan = Plan.of(arguments)
        output = Output(_target(arguments.csv), _target(arguments.json), arguments.store)
    except ValueError as error:
        print(f"watnn bench: {error}", file=sys.stderr)
        return 2
    if arguments.list:
        print("\n".join(f"{case.suite}  {case.name}" for case in plan.cases))
        return 0
    torch.set_num_threads(plan.threads)
    if plan.options.device != "cpu":
        torch.cuda.set_device(plan.options.device)
    streamed = STREAM in (arguments.json, arguments.csv)
    console = Console(highlight=False, stderr=streamed)
    if not console.is_terminal:
        console.width = max(console.width, _FILE_WIDTH)
    status = _measure(plan, output, Environment.of(plan.options.device, command), console)
    output.close()
    if output.rows:
        console.print(build_tables(output.rows))
    if arguments.bars:
        console.print()
        console.print(bars_table(standings(output.rows)))
    if arguments.plots is not None and output.rows:
        from watnn.bench.figures import save_figures

        files = save_figures(arguments.plots, output.rows)
        console.print(f"\nwritten to {arguments.plots}: {', '.join(path.name for path in files)}", soft_wrap=True)
    return status


def _measure(plan: Plan, output: Output, environment: Environment, console: Console) -> int:
    """Case after case, each row to `output` at once."""
    console.print(f"{environment.machine}, {plan.threads} CPU threads, {plan.reps} rounds; torch {environment.torch}")
    wrong: list[str] = []
    try:
        with _progress(console) as progress:
            task = progress.add_task("", total=len(plan.cases))
            for case in plan.cases:
                progress.update(task, description=f"{case.suite}: {case.name}")
                try:
                    for row in measure(case, plan.options, plan.reps, environment):
                        output.add(row)
                except WrongResult as error:
                    wrong.append(str(error))
                progress.advance(task)
    except KeyboardInterrupt:
        console.print(f"stopped: {len(output.rows)} rows were measured")
        return _INTERRUPTED
    for text in wrong:
        console.print(f"WRONG RESULT: {text}", style="bold red", soft_wrap=True)
    return 1 if wrong else 0


def _target(path: Path | None) -> Path | TextIO | None:
    return sys.stdout if path == STREAM else path


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cases"))
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)
