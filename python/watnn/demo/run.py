"""The demo from beginning to end: train, test, print, write."""

from __future__ import annotations

import dataclasses
import json
import sys
import time

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch import nn

from watnn.demo.cost import measure_costs
from watnn.demo.digits import Digits, corruptions, load
from watnn.demo.evaluation import evaluate, export_difference, has_shadow
from watnn.demo.figures import save_figures
from watnn.demo.settings import Settings
from watnn.demo.summary import SeedResult, cost_findings, findings, scores, step_times
from watnn.demo.table import build_table
from watnn.demo.training import steps_per_epoch, train_seed
from watnn.demo.variants import VARIANTS
from watnn.info import backend_in_use, cpu_name, versions

EXPORT_TOLERANCE = 1e-4  # relative to the largest output, fp32
_OPS = ("shadow_conv", "shadow_linear")
_INTERRUPTED = 130  # 128 + SIGINT, as a shell has it


def run(settings: Settings, command: str) -> int:
    """Runs the demo, prints the table and writes settings.output; returns the exit status.

    0: done; 1: an exported DOM model differs from DOM, or a backend cannot run; 130: stopped by Ctrl-C, what was
    finished is written
    """
    start = time.perf_counter()
    try:
        backends = {op: backend_in_use(op, "cpu") for op in _OPS}
    except (RuntimeError, ValueError) as error:
        print(f"watnn demo: {error}", file=sys.stderr)
        return 1
    console = Console(highlight=False)
    digits = load()
    _introduce(console, settings, digits, backends)
    results: list[SeedResult] = []
    models: dict[str, nn.Module] = {}
    try:
        costs = measure_costs(digits.train, settings)
        with _progress(console) as progress:
            for seed in range(settings.seeds):
                result, trained = _run_seed(digits, settings, seed, progress)
                models = models or trained
                results.append(result)
                progress.console.print(_line(result))
    except KeyboardInterrupt:
        console.print(f"stopped: {len(results)} of {settings.seeds} seeds finished")
        if not results:
            return _INTERRUPTED
    table, times = scores(results), step_times(results)
    conclusion = [*findings(table), *cost_findings(costs, times)]
    difference = max(d for result in results for d in result.export_difference.values() if d is not None)
    same = difference <= EXPORT_TOLERANCE
    complete = len(results) == settings.seeds
    console.print()
    console.print(build_table(table, costs, times, len(results)))
    console.print(_legend(settings, len(results)), style="dim")
    console.print()
    console.print(_bullets(conclusion))
    console.print()
    verdict = "give the outputs of dom(key)" if same else "DIFFER from dom(key)"
    console.print(f"exported DOM models {verdict}: relative error {difference:.0e}")
    document = {
        "command": command,
        "complete": complete,
        "seeds": [result.seed for result in results],
        "settings": {**dataclasses.asdict(settings), "output": str(settings.output)},
        "versions": versions(),
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads(), "backends": backends},
        "data": {"train": len(digits.train.y), "test": len(digits.test.y)},
        "table": {
            name: {
                "label": variant.label,
                "transform": None if variant.transform is None else repr(variant.transform),
                "accuracy": {metric: score and score._asdict() for metric, score in table[name].items()},
                "cost": costs[name],
            }
            for name, variant in VARIANTS.items()
        },
        "export_difference": difference,
        "curves": {
            name: {"loss": [r.loss[name] for r in results], "aom": [r.curve[name] for r in results]}
            for name in VARIANTS
        },
        "conclusion": conclusion,
        "time": {"seconds": round(time.perf_counter() - start, 1), "steps": times},
    }
    (settings.output / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    pictures = save_figures(settings.output, results, table, models, digits.test)
    names = ", ".join(["results.json", *(picture.name for picture in pictures)])
    console.print(f"{time.perf_counter() - start:.0f} s; written to {settings.output}: {names}", soft_wrap=True)
    if not complete:
        return _INTERRUPTED
    return 0 if same else 1


def _run_seed(
    digits: Digits, settings: Settings, seed: int, progress: Progress
) -> tuple[SeedResult, dict[str, nn.Module]]:
    """Trains and tests every variant of one seed."""
    steps = settings.epochs * steps_per_epoch(digits.train, settings)
    task = progress.add_task(f"seed {seed}: training {len(VARIANTS)} variants", total=steps)
    runs = train_seed(digits, settings, seed, lambda: progress.advance(task))
    progress.update(task, description=f"seed {seed}: testing")
    corrupted = corruptions(digits.test)
    models = {name: run.model for name, run in runs.items()}
    result = SeedResult(
        seed,
        {name: evaluate(model, digits, corrupted, settings, seed) for name, model in models.items()},
        {name: run.loss for name, run in runs.items()},
        {name: run.curve for name, run in runs.items()},
        {name: run.step_seconds for name, run in runs.items()},
        {
            name: export_difference(model, digits.test, seed) if has_shadow(model) else None
            for name, model in models.items()
        },
    )
    progress.update(task, description=f"seed {seed}: done")
    return result, models


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)


def _line(result: SeedResult) -> str:
    accuracies = ", ".join(f"{VARIANTS[name].label} {metrics['aom']:.1f}" for name, metrics in result.accuracy.items())
    return f"seed {result.seed}, AOM: {accuracies}"


def _legend(settings: Settings, seeds: int) -> str:
    colours = "Green, red: better, worse than plain in every seed. " if seeds > 1 else ""
    return (
        f"{colours}DOM: the mean of {settings.draws} exported draws. BN as trained: with BatchNorm's running statistics; "
        "elsewhere they are re-estimated on the training images."
    )


def _bullets(sentences: list[str]) -> Table:
    listed = Table.grid(padding=(0, 1))
    for sentence in sentences:
        listed.add_row("-", Text(sentence))
    return listed


def _introduce(console: Console, settings: Settings, digits: Digits, backends: dict[str, str]) -> None:
    console.print(
        f"A small CNN on {len(digits.train.y)} digits, tested on {len(digits.test.y)} others: {len(VARIANTS)} variants, "
        f"{settings.epochs} epochs, {settings.seeds} seed{'s' if settings.seeds > 1 else ''}; {cpu_name()}, "
        f"{torch.get_num_threads()} threads, "
        f"{', '.join(f'{op}: {backend}' for op, backend in backends.items())}."
    )
    width = max(len(variant.label) for variant in VARIANTS.values())
    for variant in VARIANTS.values():
        made = "nn.Conv2d" if variant.transform is None else f"watnn.convert(model, {variant.transform!r})"
        console.print(f"  {variant.label.ljust(width)}  {made}", soft_wrap=True)
    console.print()
