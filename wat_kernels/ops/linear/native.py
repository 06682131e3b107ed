"""The C++ CPU backend: SW passes as a cache-sized panel, its noise is generated in vector registers while it is packed.

The kernels are in csrc/cpu/linear*; they register `shadow_linear.native` and its backward when the extension is loaded.
"""

from __future__ import annotations

import torch

from wat_kernels.dispatch import Call
from wat_kernels.extension import NATIVE, NATIVE_IS_PORTABLE

_MANY_ROWS = 128


RUNS_ON = "cpu"


def supports(call: Call) -> tuple[bool, str]:
    if not NATIVE.available:
        return False, NATIVE.reason
    if call.device != "cpu":
        return False, f"x is on {call.device}, this backend runs on the CPU"
    return call.dtype in (torch.float32, torch.bfloat16), f"{call.dtype} is not float32 or bfloat16"


def worthwhile(call: Call) -> tuple[bool, str]:
    """Measured in README.md: without vector instructions, products of many rows are faster through the library backend."""
    slow = NATIVE_IS_PORTABLE and call.rows >= _MANY_ROWS
    return not slow, "neither AVX2 nor AVX-512 is in use, without which it is slower than the next for many rows"
