"""What a training leaves behind: epochs.csv, TensorBoard's event files, the table of results."""

from __future__ import annotations

import csv
import importlib.util
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from .evaluation import Score
from .training import Training


def write_epochs(path: Path, history: Sequence[dict[str, float]]) -> None:
    """The whole history, so that the file of a continued training has no gap and no line twice."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, Training.COLUMNS)
        writer.writeheader()
        writer.writerows(history)


class TensorBoard:
    """Writes the columns of the history as curves over epochs. Raises ImportError without the tensorboard package.

    epochs_done: on continuing, what earlier event files hold beyond them is hidden
    """

    def __init__(self, folder: Path, epochs_done: int):
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError("--tensorboard: tensorboard is not installed: pip install tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=epochs_done + 1)

    def add(self, record: dict[str, float]) -> None:
        for name, value in record.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, record["epoch"])

    def close(self) -> None:
        self._writer.close()


def write_results(path: Path, settings: dict, scores: Sequence[Score]) -> None:
    path.write_text(json.dumps({"settings": settings, "scores": [s._asdict() for s in scores]}, indent=1) + "\n")


def results_table(scores: Sequence[Score]) -> Table:
    """A row for AOM, one for each draw of DOM, and their mean."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("weights", "accuracy\nin %", "with BN\nas trained", "MFLOP\nan image", "of\nAOM's"):
        table.add_column(heading, justify="left" if heading == "weights" else "right", no_wrap=True)
    dense = scores[0].mflop
    for score in scores:
        name = score.mode if score.key is None else f"{score.mode}, key {score.key}"
        table.add_row(name, *_cells([score], dense))
    drawn = [score for score in scores if score.mode == "DOM"]
    if len(drawn) > 1:
        table.add_row(f"DOM, mean of {len(drawn)}", *_cells(drawn, dense))
    return table


def _cells(scores: Sequence[Score], dense: float) -> list[str]:
    work = statistics.fmean(score.mflop for score in scores)
    return [
        _with_spread([score.accuracy for score in scores]),
        _with_spread([score.as_trained for score in scores]),
        f"{work:.2f}",
        f"{work / dense:.0%}",
    ]


def _with_spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"
