"""The configurations that tuning chooses from, per pass and size of the dtype. `benchmarks.compile_report` walks them.

A tile of noise is made once for each block of rows, so row blocks are tall.
"""

from __future__ import annotations

from wat_kernels.triton_launch import configs_of

_ROWS = ("BM", "BN", "BK", "GROUP_M")
_WEIGHT = ("BO", "BI", "BP", "GROUP_M")

# Of bytes per element: 2 for fp16 and bf16, 4 for fp32. The last of each list also serves the interpreter.
ROW_CONFIGS = {
    2: configs_of(_ROWS, [(128, 128, 64, 8, 8, 4), (256, 64, 64, 8, 8, 4), (256, 128, 32, 8, 8, 4), (64, 64, 64, 8, 8, 4)]),
    4: configs_of(_ROWS, [(128, 64, 32, 8, 8, 3), (64, 32, 32, 8, 8, 3)]),
}  # fmt: skip
WEIGHT_CONFIGS = {
    2: configs_of(_WEIGHT, [(128, 128, 64, 8, 8, 3), (64, 128, 64, 8, 8, 3), (64, 64, 64, 8, 4, 3), (64, 32, 64, 8, 4, 3)]),
    4: configs_of(_WEIGHT, [(64, 64, 32, 8, 4, 3), (32, 32, 32, 8, 4, 3)]),
}  # fmt: skip
