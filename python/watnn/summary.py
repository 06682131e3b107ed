"""Which layers of a model redraw their weight, with what, through which backend, and which do not and why."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wat_kernels import dispatch
from watnn.conversion import reasons_left
from watnn.flops import expected_share, flops
from watnn.layers import ShadowLayer, shadow_layers
from watnn.modes import ModeSwitch, layer_keys

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class ShadowSummary:
    """One shadow layer. What only a forward tells is None where `summary` got no inputs.

    shape:       of the weight
    transform:   as it prints; "" for a layer that never draws
    calls:       in one forward of the model
    backend:     what computed it: a name, several where calls differed, "" where it was not called
    passed_over: (name, reason) of the backends that `auto` would rather have taken
    taps:        share of the weight's taps that a forward computes on average, at the present strength
    dense, expected: FLOPs of one forward with PW, and with SW on average; a multiply-add counts as 2
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    transform: str
    calls: int | None
    backend: str | None
    passed_over: tuple[tuple[str, str], ...]
    taps: float
    dense: int | None
    expected: float | None


@dataclass(frozen=True)
class LeftWeight:
    """A matrix or kernel that no forward redraws, and why."""

    name: str
    layer: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Summary:
    """What `watnn.summary` returns: prints as a table, through rich where it is installed and there is a terminal."""

    layers: tuple[ShadowSummary, ...]
    left: tuple[LeftWeight, ...]

    @property
    def never_called(self) -> tuple[str, ...]:
        """Names of shadow layers that the forward did not call; empty where there were no inputs."""
        return tuple(layer.name for layer in self.layers if layer.calls == 0)

    def records(self) -> list[dict[str, Any]]:
        """The shadow layers as dictionaries, for programs."""
        return [asdict(layer) for layer in self.layers]

    def print(self) -> None:
        """To standard output; in colour where rich is installed and that is a terminal."""
        if importlib.util.find_spec("rich") is None:
            print(self)
            return
        from rich.console import Console

        console = Console()
        console.print(self) if console.is_terminal else print(self)

    def __str__(self) -> str:
        lines = [_HEADINGS, *(_cells(layer) for layer in self.layers)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
        table = [
            "  ".join(
                cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*table, *self._remarks()])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text  # plain: what a transform prints may look like rich's markup

        table = Table()
        for column, heading in enumerate(_HEADINGS):
            table.add_column(heading, justify="right" if column in _NUMBERS else "left", overflow="fold")
        for layer in self.layers:
            table.add_row(*map(Text, _cells(layer)), style="yellow" if layer.calls == 0 else "")
        yield table
        yield from map(Text, self._remarks())

    def _remarks(self) -> list[str]:
        remarks = []
        reasons: dict[tuple[str, str], list[str]] = {}
        for layer in self.layers:
            for refusal in layer.passed_over:
                reasons.setdefault(refusal, []).append(layer.name)
        for (backend, reason), names in reasons.items():
            remarks.append(f"not {backend} for {_listed(names)}: {reason}")
        if self.never_called:
            remarks.append(
                f"never called: {_listed(self.never_called)}; no SW is used where a model reads a weight without "
                "calling its layer"
            )
        grouped: dict[str, list[str]] = {}
        for weight in self.left:
            grouped.setdefault(weight.reason, []).append(weight.name)
        for reason, names in grouped.items():
            remarks.append(f"left as it is: {_listed(names)} ({reason})")
        return remarks


_HEADINGS = ("layer", "type", "weight", "transform", "calls", "backend", "taps", "FLOPs plain", "expected")
_NUMBERS = (4, 6, 7, 8)


def _cells(layer: ShadowSummary) -> tuple[str, ...]:
    return (
        layer.name or "(the model)",
        layer.layer,
        "x".join(map(str, layer.shape)),
        layer.transform or "none",
        "?" if layer.calls is None else str(layer.calls),
        "?" if layer.backend is None else layer.backend or "-",
        f"{layer.taps:.0%}",
        "?" if layer.dense is None else f"{layer.dense:,}",
        "?" if layer.expected is None else f"{layer.expected:,.0f}",
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name or "the model itself" for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def summary(model: nn.Module, *inputs: Any) -> Summary:
    """For each shadow layer: shape, transform, calls, backend and why not a faster one, share of taps, FLOPs; and what is left.

    inputs: what the model takes. It runs twice without gradients and in eval(), once with SW of a fixed key and once
            with PW, and is left as it was; torch's generators too. Without inputs, what only a forward tells stays open
    Returns a Summary, which prints as a table.
    Raises TypeError when `model` is no module, and what the model raises.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; accepted is a torch.nn.Module")
    calls: dict[str, list[dispatch.Decision | None]] = {}
    work: dict[str, int] = {}
    if inputs:
        calls = _calls_of(model, inputs)
        work = {layer.name: layer.dense for layer in flops(model, *inputs).layers}
    layers = []
    for name, layer in shadow_layers(model):
        made = calls.get(name, [])
        decisions = [decision for decision in made if decision is not None]
        share, dense = expected_share(layer), work.get(name, 0) if inputs else None
        layers.append(
            ShadowSummary(
                name=name,
                layer=type(layer).__name__,
                shape=tuple(layer.weight.shape),
                transform="" if layer.transform is None else repr(layer.transform),
                calls=len(made) if inputs else None,
                backend=", ".join(dict.fromkeys(d.backend for d in decisions)) if inputs else None,
                passed_over=tuple(dict.fromkeys(refusal for d in decisions for refusal in d.passed_over)),
                taps=share,
                dense=dense,
                expected=None if dense is None else dense * share,
            )
        )
    return Summary(tuple(layers), _left(model))


def _calls_of(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, list[dispatch.Decision | None]]:
    """What was decided for each call of each shadow layer in one forward with SW; None for a layer that draws nothing."""
    made: dict[str, list[dispatch.Decision | None]] = {}
    handles = []
    with _untouched(model), dispatch.recording() as decisions:
        try:
            for name, layer in shadow_layers(model):

                def note(*_: Any, name: str = name) -> None:
                    made.setdefault(name, []).append(decisions[-1] if decisions else None)
                    decisions.clear()

                handles.append(layer.register_forward_hook(note))
            model(*inputs)
        finally:
            for handle in handles:
                handle.remove()
    return made


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """eval(), SW of a fixed key, no gradients; at the end the model and torch's generators are what they were."""
    training = {module: module.training for module in model.modules()}
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    keys = layer_keys(0, len(shadow_layers(model)))
    try:
        model.eval()
        with torch.random.fork_rng(list(devices)), torch.no_grad(), ModeSwitch(model, "dom", keys):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _left(model: nn.Module) -> tuple[LeftWeight, ...]:
    """Every weight of two or more dimensions that no shadow layer has, with `convert`'s reason where it gave one."""
    reasons = {id(module): reason for _, module, reason in reasons_left(model)}
    left = []
    for name, module in model.named_modules():
        if isinstance(module, ShadowLayer):
            continue
        for attribute, parameter in module._parameters.items():
            if parameter is not None and "weight" in attribute and parameter.ndim > 1:
                reason = reasons.get(id(module), "not converted")
                left.append(LeftWeight(name, type(module).__name__, tuple(parameter.shape), reason))
                break
    return tuple(left)
