"""Which backend runs a call, and why the others do not."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import torch

logger = logging.getLogger("wat_kernels")

# every backend there may be; the BACKENDS of an op are those it has, in the order in which `auto` asks them
NAMES = ("cuda", "triton", "native", "library", "reference")


class Call(NamedTuple):
    """What backends look at to accept or refuse. `kernel` is (1, 1) and `groups` 1 for a linear layer.

    rows:  of the matrix that a linear layer multiplies; for a convolution, output pixels of the whole batch, and input
           pixels for a transposed one
    device_index: of x's device among those of its type; None is the current one
    transposed: of a convolution
    """

    device: str
    dtype: torch.dtype
    kernel: tuple[int, ...] = (1, 1)
    in_channels: int = 1
    out_channels: int = 1
    groups: int = 1
    noise: int = 0
    rows: int = 1
    device_index: int | None = None
    transposed: bool = False


class Backend(Protocol):
    """A module of `ops/<op>/`: it registers its overloads of the op when imported.

    A module may also have `worthwhile(call) -> (ok, reason)`: whether `auto` should take it for a call that it supports. A
    backend that is named is not asked. And it may have RUNS_ON, the only type of device for which `auto` considers it.
    """

    def supports(self, call: Call) -> tuple[bool, str]: ...


class Decision(NamedTuple):
    """Which backend runs a call.

    passed_over: (name, reason) of the backends that `auto` prefers to it; empty where the backend was named
    """

    backend: str
    passed_over: tuple[tuple[str, str], ...] = ()


_logged: set[tuple[str, str, str]] = set()


def environment() -> str:
    """WAT_BACKEND, or "auto"."""
    return os.environ.get("WAT_BACKEND", "auto")


def decide(op: str, backends: Mapping[str, Backend], requested: str, environment: str, call: Call) -> Decision:
    """The backend that runs `call`, and why not a faster one.

    requested: "auto", or a name; "auto" gives way to `environment`, the value of WAT_BACKEND.
    Raises ValueError for a name that does not exist, RuntimeError with the reason when a named backend cannot run.
    """
    requested = check_name(requested)
    if requested == "auto":
        requested = check_name(environment, "WAT_BACKEND")
    if requested != "auto":
        if requested not in backends:
            raise RuntimeError(f"backend={requested!r} cannot run {op}: it is not part of this build")
        accepted, reason = backends[requested].supports(call)
        if not accepted:
            raise RuntimeError(f"backend={requested!r} cannot run {op}: {reason}")
        return Decision(requested)
    passed_over: list[tuple[str, str]] = []
    for name, backend in backends.items():
        if getattr(backend, "RUNS_ON", call.device) != call.device:
            continue  # made for another kind of device: no alternative here
        accepted, reason = backend.supports(call)
        if accepted and hasattr(backend, "worthwhile"):
            accepted, reason = backend.worthwhile(call)
        if accepted:
            return Decision(name, tuple(passed_over))
        passed_over.append((name, reason))
        _log_refusal(op, name, reason)
    raise RuntimeError(f"no backend runs {op} for {call}")


def choose(op: str, backends: Mapping[str, Backend], requested: str, environment: str, call: Call) -> str:
    """The name alone of what `decide` decides."""
    return decide(op, backends, requested, environment, call).backend


_recorded: list[Decision] | None = None


@contextlib.contextmanager
def recording() -> Iterator[list[Decision]]:
    """A block whose calls of ops add what was decided for them to the list, in their order. Not for several threads."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def record(decision: Decision) -> None:
    """Called by each op at each call."""
    if _recorded is not None:
        _recorded.append(decision)


def _log_refusal(op: str, name: str, reason: str) -> None:
    if not torch.compiler.is_compiling() and (op, name, reason) not in _logged:
        _logged.add((op, name, reason))
        logger.info("%s: backend %s not used: %s", op, name, reason)


def check_name(name: str, argument: str = "backend") -> str:
    """`name`, or a ValueError that lists the backends."""
    if name != "auto" and name not in NAMES:
        raise ValueError(f"{argument}={name!r}; accepted are auto, {', '.join(NAMES)}")
    return name
