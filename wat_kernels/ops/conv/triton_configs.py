"""The configurations that tuning chooses from, per pass and size of the dtype. `benchmarks.compile_report` walks them."""

from __future__ import annotations

import torch

from wat_kernels.tap_table import identity_line
from wat_kernels.triton_launch import configs_of

_IMAGE = ("BM", "BN", "BK", "GROUP_M")
_WEIGHT = ("BO", "BI", "BP")

# Of bytes per element: 2 for fp16 and bf16, 4 for fp32. The last of each list also serves the interpreter.
IMAGE_CONFIGS = {
    2: configs_of(
        _IMAGE,
        [
            (128, 128, 64, 8, 8, 4),
            (128, 64, 64, 8, 8, 4),
            (64, 128, 64, 8, 8, 4),
            (128, 128, 32, 8, 8, 4),
            (64, 32, 64, 8, 4, 4),
        ],
    ),
    4: configs_of(
        _IMAGE,
        [
            (128, 64, 32, 8, 8, 3),
            (64, 64, 32, 8, 4, 3),
            (128, 64, 16, 8, 8, 3),
            (64, 64, 16, 8, 8, 3),
            (64, 32, 16, 8, 4, 3),
        ],
    ),
}
WEIGHT_CONFIGS = {
    2: configs_of(_WEIGHT, [(64, 64, 64, 8, 3), (128, 64, 32, 8, 4), (64, 64, 32, 4, 4), (64, 32, 32, 8, 4)]),
    4: configs_of(_WEIGHT, [(64, 64, 32, 8, 4), (64, 64, 16, 8, 3), (32, 32, 32, 4, 4)]),
}


def all_taps(a: dict) -> dict:
    """The identity in place of a kernel's table: what tuning measures with, whatever this launch draws."""
    taps = "taps" if "taps" in a else "taps_t"
    line = identity_line(a["TAPS"], a["WIDTH"])
    return {"thresholds": torch.full((1,), 2**32, device=a[taps].device), taps: line.to(a[taps].device), "rows": 1}
