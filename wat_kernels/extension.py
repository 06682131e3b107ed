"""Loads the compiled CPU backend, wat_kernels/_native.abi3.so, and remembers whether that worked.

Importing this module never raises: a missing or broken library is a reason that `supports()` reports.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch


class Extension(NamedTuple):
    """available: the library is loaded and its ops are registered; reason: why not, or the file that was loaded."""

    available: bool
    reason: str


def _load(path: Path) -> Extension:
    if not path.exists():
        return Extension(False, f"{path.name} is not built (WAT_SKIP_NATIVE=1, or no C++ compiler at install time)")
    try:
        torch.ops.load_library(str(path))
    except Exception as error:
        return Extension(False, f"{path.name} does not load: {error}")
    wanted = os.environ.get("WAT_CPU_ISA")
    if wanted and torch.ops.wat_kernels.native_isa("") != wanted:
        return Extension(False, f"WAT_CPU_ISA={wanted!r} is not one of avx512, avx2, portable that this processor has")
    return Extension(True, str(path))


NATIVE = _load(Path(__file__).with_name("_native.abi3.so"))
