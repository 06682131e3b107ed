"""Loads the compiled libraries, wat_kernels/_native.abi3.so and _cuda.abi3.so, and remembers whether that worked.

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


def _load(name: str, why_missing: str) -> Extension:
    path = Path(__file__).with_name(name)
    if not path.exists():
        return Extension(False, f"{path.name} is not built ({why_missing})")
    try:
        torch.ops.load_library(str(path))
    except Exception as error:
        return Extension(False, f"{path.name} does not load: {error}")
    return Extension(True, str(path))


def _load_native() -> Extension:
    native = _load("_native.abi3.so", "WAT_SKIP_NATIVE=1, or no C++ compiler at install time")
    wanted = os.environ.get("WAT_CPU_ISA")
    if native.available and wanted and torch.ops.wat_kernels.native_isa("") != wanted:
        return Extension(
            False, f"WAT_CPU_ISA={wanted!r} is not one of avx512bf16, avx512, avx2, portable that this processor has"
        )
    return native


NATIVE = _load_native()
CUDA = _load("_cuda.abi3.so", "WAT_SKIP_CUDA=1, or no nvcc at install time")
LIBRARIES = {"native": NATIVE, "cuda": CUDA}

# What of bf16 arithmetic this processor has and torch's own kernels use: "amx", "avx512bf16" or nothing.
BF16_UNITS: str = next(
    (
        name
        for name, has in (("amx", "_is_amx_tile_supported"), ("avx512bf16", "_is_avx512_bf16_supported"))
        if getattr(torch.cpu, has, lambda: False)()
    ),
    "",
)

# The instruction set that the native backend starts with. Asked once: the compiler traces no op that returns a string, and
# to tell it so would import it, which takes seconds.
_NATIVE_ISA: str = torch.ops.wat_kernels.native_isa("") if NATIVE.available else ""
# Whether it has no vector instructions to use here, and so is several times slower than it could be.
NATIVE_IS_PORTABLE: bool = _NATIVE_ISA == "portable"
# What of BF16_UNITS its dense convolutions use.
NATIVE_BF16_UNITS: str = "avx512bf16" if _NATIVE_ISA == "avx512bf16" else ""
