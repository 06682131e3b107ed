"""The suites by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from watnn.bench.case import Case
from watnn.bench.suites import conv, depthwise, linear, memory, network, scaling

SUITES: dict[str, Callable[[], list[Case]]] = {
    "conv": conv.cases,
    "depthwise": depthwise.cases,
    "linear": linear.cases,
    "memory": memory.cases,
    "network": network.cases,
    "scaling": scaling.cases,
}
