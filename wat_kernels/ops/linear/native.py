"""The C++ CPU backend: SW passes as a cache-sized panel, its noise is generated in vector registers while it is packed.

The kernels are in csrc/cpu/linear*; they register `shadow_linear.native` and its backward when the extension is loaded.
"""

from __future__ import annotations

import torch

from wat_kernels.dispatch import Call
from wat_kernels.extension import BF16_UNITS, NATIVE, NATIVE_BF16_UNITS, NATIVE_IS_PORTABLE

# The library backend is the faster one from so many rows on: where torch has bf16 units that this backend does not use, or
# there are no vector instructions; and where both use the same
_MANY_ROWS = 128
_MANY_ROWS_OF_PAIRS = 1024


RUNS_ON = "cpu"


def supports(call: Call) -> tuple[bool, str]:
    if not NATIVE.available:
        return False, NATIVE.reason
    if call.device != "cpu":
        return False, f"x is on {call.device}, this backend runs on the CPU"
    return call.dtype in (torch.float32, torch.bfloat16), f"{call.dtype} is not float32 or bfloat16"


def worthwhile(call: Call) -> tuple[bool, str]:
    """Whether `auto` should take it: not where the library backend was measured to be faster (README.md has the tables)."""
    if NATIVE_IS_PORTABLE and call.rows >= _MANY_ROWS:
        return False, "neither AVX2 nor AVX-512 is in use, without which it is slower than the next for many rows"
    if call.dtype == torch.bfloat16 and BF16_UNITS:
        same = BF16_UNITS == NATIVE_BF16_UNITS
        if call.rows >= (_MANY_ROWS_OF_PAIRS if same else _MANY_ROWS):
            return False, f"torch's own bf16 product makes better use of the {BF16_UNITS} of this processor"
    return True, ""
