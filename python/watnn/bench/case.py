"""What a suite hands to the runner: cases, and in each the contenders that are measured on the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
MODES = ("forward", "backward", "full")
ROLES = ("wat", "plain", "official", "compiled", "library")  # what a contender is; all but the first are baselines


@dataclass(frozen=True)
class Options:
    """What the user chose and `setup` needs to know.

    backends: the backends of the contenders with role "wat", by name; "auto" among them
    compiled: whether to measure torch.compile of the official pipeline too, which takes seconds a case
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    backends: tuple[str, ...] = ("auto",)
    compiled: bool = True


@dataclass(frozen=True)
class Run:
    """One thing to time and weigh: a layer with one draw, a baseline, or a training step.

    modes:       for each mode a function that prepares and returns what is timed; what it prepares is not timed. A mode
                 that is not there is not measured
    probability: the share of this run in its contender's numbers; those of a contender's runs sum to one
    check:       raises verify.WrongResult unless the results are right; None where torch itself is what runs
    saved:       bytes that autograd keeps from forward to backward, without inputs and parameters
    """

    modes: Mapping[str, Callable[[], Callable[[], object]]]
    probability: float = 1.0
    check: Callable[[], None] | None = None
    saved: Callable[[], int] | None = None


@dataclass(frozen=True)
class Work:
    """The least that any implementation has to do in one call: floating-point operations, and bytes to and from memory."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Contender:
    """What is measured: our layer with a transform, or a baseline.

    role:    one of ROLES
    name:    as users call it: "WATConv2d", "nn.Conv2d", "torchvision pipeline"
    variant: what is drawn ("translate", "identity", "dropconnect", ...), "" for the plain layer
    runs:    its draws with their probabilities; one run where nothing is drawn
    work:    by mode, averaged over the draws; {} where the limit of the machine is not asked for
    backend: what runs it, for our layers
    missing: why it cannot be measured here; then runs is empty
    facts:   what is known without measuring, as fields of the row
    """

    role: str
    name: str
    variant: str = ""
    runs: Sequence[Run] = ()
    work: Mapping[str, Work] = field(default_factory=dict)
    backend: str = ""
    missing: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One shape of one suite.

    name:     unique in its suite; part of it is what `--filter` looks for
    setup:    builds the tensors and the contenders, once, for checking, time and memory
    modes:    those to time
    quick:    whether `--quick` has it
    measures: "time", or "memory"
    threads:  CPU threads of this case, where they are what it varies
    curve:    of a scaling case, what it varies, and `at` the value on the horizontal axis
    layout:   of the activations
    """

    suite: str
    name: str
    setup: Callable[[Options], Sequence[Contender]]
    modes: tuple[str, ...] = MODES
    quick: bool = False
    measures: str = "time"
    threads: int | None = None
    curve: str = ""
    at: float | None = None
    layout: str = "channels_last"


def layer_modes(
    forward: Callable[[], Tensor], leaves: Sequence[Tensor], dy: Tensor, compiled: bool = False
) -> dict[str, Callable[[], Callable[[], object]]]:
    """The modes of a differentiable layer.

    forward:  calls the layer; each call makes a graph for backward
    leaves:   what gradients are asked for
    dy:       the gradient of the output, of its shape
    compiled: forward comes from torch.compile, whose backward runs once a forward, so that it cannot be timed alone
    """

    def backward() -> Callable[[], object]:
        edge = torch.autograd.graph.get_gradient_edge(forward())  # keeps the graph, and not the output
        return lambda: torch.autograd.grad(edge, leaves, dy, retain_graph=True)

    modes = {"forward": lambda: forward, "full": lambda: lambda: torch.autograd.grad(forward(), leaves, dy)}
    return modes if compiled else {**modes, "backward": backward}
