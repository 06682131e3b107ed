"""How far a backend's result may be from the reference: one table, read by the tests and by the benchmarks."""

from __future__ import annotations

import torch

# |difference| <= atol + rtol * |expected|, for accumulation in fp32 (fp64 in fp64)
TOLERANCES = {
    torch.float64: {"atol": 1e-9, "rtol": 1e-9},
    torch.float32: {"atol": 2e-4, "rtol": 2e-4},
    torch.bfloat16: {"atol": 5e-2, "rtol": 3e-2},
    torch.float16: {"atol": 8e-3, "rtol": 8e-3},
}
