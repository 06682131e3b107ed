"""A training step of the paper's networks: its time, and its peak of memory."""

from __future__ import annotations

import dataclasses
from functools import partial

from watnn.bench.case import Case
from watnn.bench.network import contenders
from watnn.bench.networks import NETWORKS

_BATCH = 128  # of the official recipe
_QUICK = Case(
    "network", "VGG-16 batch 8", partial(contenders, "vgg16", 8), modes=("full",), quick=True
)  # with a small batch the weight is what costs


def cases() -> list[Case]:
    times = [
        Case("network", f"{network.title} batch {_BATCH}", partial(contenders, name, _BATCH), modes=("full",))
        for name, network in NETWORKS.items()
    ]
    memory = [dataclasses.replace(case, name=f"{case.name} memory", measures="memory") for case in times]
    return [*times, _QUICK, *memory]
