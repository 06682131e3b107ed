"""The C++ CPU backend: an indirect-convolution GEMM through which SW passes as a packed, cache-sized panel.

The kernels are in csrc/cpu; they register `shadow_conv.native` and its backward when the extension is loaded.
"""

from __future__ import annotations

import math

import torch

from wat_kernels.dispatch import Call
from wat_kernels.extension import BF16_UNITS, NATIVE, NATIVE_BF16_UNITS, NATIVE_IS_PORTABLE

_SMALL = 2**20  # multiply-adds that take less time than the library backend needs to make SW
# Where torch computes with bf16 units that this backend does not use, library is the faster one from so many multiply-adds
# on (below, making SW costs more than they gain), and from so many output pixels on (below, SW is large beside them).
_BF16_WORK = 2**26
_BF16_PIXELS = 512
_MOST_TAPS = 4096  # of the scratch bound: a panel of more would not fit 2 MiB


RUNS_ON = "cpu"


def supports(call: Call) -> tuple[bool, str]:
    if not NATIVE.available:
        return False, NATIVE.reason
    if call.device != "cpu":
        return False, f"x is on {call.device}, this backend runs on the CPU"
    if call.dtype not in (torch.float32, torch.bfloat16):
        return False, f"{call.dtype} is not float32 or bfloat16"
    if len(call.kernel) > 2:
        return False, "it takes convolutions of 1 and 2 dimensions"
    taps = math.prod(call.kernel)
    return taps <= _MOST_TAPS, f"a kernel of {taps} taps is larger than {_MOST_TAPS}"


def worthwhile(call: Call) -> tuple[bool, str]:
    """Whether `auto` should take it: not where the library backend was measured to be faster (README.md has the table)."""
    if call.groups == call.in_channels == call.out_channels:
        return True, ""  # depthwise
    work = call.rows * call.out_channels * call.in_channels // call.groups * math.prod(call.kernel)
    if NATIVE_IS_PORTABLE and work >= _SMALL:
        return False, "neither AVX2 nor AVX-512 is in use, without which it is slower than the next"
    behind = BF16_UNITS not in ("", NATIVE_BF16_UNITS)
    if call.dtype == torch.bfloat16 and behind and work >= _BF16_WORK and call.rows >= _BF16_PIXELS:
        return False, f"torch's own bf16 kernels use the {BF16_UNITS} of this processor, it does not"
    return True, ""
