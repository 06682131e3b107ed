"""Which kinds of layers a check of this machine's kernels tells apart."""

from __future__ import annotations

from wat_kernels.dispatch import Call

# what the ops' kernels differ by, those first whose check is worth most where time is short
LAYERS = ("convolution", "many rows", "few rows", "depthwise", "grouped")
_FEW_ROWS = 64  # what the CUDA kernels of linear layers are for


def layer_of(op: str, call: Call) -> str:
    """The one of LAYERS that a call of `op` is."""
    if op == "shadow_linear":
        return "few rows" if call.rows <= _FEW_ROWS else "many rows"
    if call.groups == 1:
        return "convolution"
    return "depthwise" if call.groups == call.in_channels == call.out_channels else "grouped"
