"""The C++ CPU backend: SW passes as a cache-sized panel, its noise is generated in vector registers while it is packed.

The kernels are in csrc/cpu/linear*; they register `shadow_linear.native` and its backward when the extension is loaded.
"""

from __future__ import annotations

import torch

from wat_kernels.dispatch import Call
from wat_kernels.extension import NATIVE


def supports(call: Call) -> tuple[bool, str]:
    if not NATIVE.available:
        return False, NATIVE.reason
    if call.device != "cpu":
        return False, f"x is on {call.device}, this backend runs on the CPU"
    return call.dtype in (torch.float32, torch.bfloat16), f"{call.dtype} is not float32 or bfloat16"
