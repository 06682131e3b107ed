"""What exporting a model for DOM saves, on this machine."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from watnn.export import export
from watnn.info import cpu_name

_ROUND = 0.02  # seconds that one measurement takes at least


@dataclass(frozen=True)
class Cost:
    """Of one forward without gradients. flops: a multiply-add counts as 2; seconds: the median of the rounds."""

    flops: int
    seconds: float


@dataclass(frozen=True)
class ExportReport:
    """An exported model before, `aom`, and after, `dom`; prints as a table. machine: where it was measured."""

    aom: Cost
    dom: Cost
    machine: str

    def __str__(self) -> str:
        lines = [("export", "FLOPs", "", "latency", "")]
        for name, cost in (("AOM", self.aom), ("DOM", self.dom)):
            shares = (cost.flops / self.aom.flops if self.aom.flops else 1.0, cost.seconds / self.aom.seconds)
            flops_share, seconds_share = (f"{share:.0%}" for share in shares)
            lines.append((name, f"{cost.flops:,}", flops_share, f"{cost.seconds * 1e3:.3f} ms", seconds_share))
        widths = [max(len(line[column]) for line in lines) for column in range(5)]
        rows = (
            "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        return "\n".join([*rows, self.machine])


def export_report(model: nn.Module, *inputs: Tensor, key: int | None = None, rounds: int = 9) -> ExportReport:
    """FLOPs and measured latency of `watnn.export(model)` and of `watnn.export(model, mode="dom", key=key)`.

    inputs: what the model takes, on the model's device; the model itself is neither run nor changed
    key:    as for `export`
    rounds: both models are timed in turn this many times, so that what else the machine does falls on both; an int >= 1
    Raises what `export` raises, and ValueError for another number of rounds.
    """
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
        raise ValueError(f"rounds={rounds!r}; accepted is an int >= 1")
    # here, because it imports torch's C++ builder, which warns on a machine with nvcc and without a GPU
    from torch.utils.benchmark import Timer

    exported = {"aom": export(model), "dom": export(model, mode="dom", key=key)}
    counted = {name: _flops(module, inputs) for name, module in exported.items()}
    timers = {
        name: Timer("model(*inputs)", globals={"model": module, "inputs": inputs}, num_threads=torch.get_num_threads())
        for name, module in exported.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in exported}
    with torch.inference_mode():
        repeats = {name: max(1, round(_ROUND / timer.timeit(2).mean)) for name, timer in timers.items()}
        for _ in range(rounds):
            for name, timer in timers.items():
                seconds[name].append(timer.timeit(repeats[name]).mean)
    costs = {name: Cost(counted[name], statistics.median(seconds[name])) for name in exported}
    return ExportReport(costs["aom"], costs["dom"], _machine(inputs))


def _flops(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops()


def _machine(inputs: tuple[Tensor, ...]) -> str:
    device = next((value.device for value in inputs if isinstance(value, Tensor)), torch.device("cpu"))
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{cpu_name()}, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"
