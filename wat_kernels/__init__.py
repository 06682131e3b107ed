"""Kernels for layers whose weight is redrawn at every forward. Tensors in, tensors out; `watnn` has the modules."""

from wat_kernels import flop_formulas  # noqa: F401  (registers them)
from wat_kernels.draw import draw_key, draw_rows
from wat_kernels.matrix_grid import MatrixGrid
from wat_kernels.mixture import MixedGrid, MixedTable
from wat_kernels.noise import Noise
from wat_kernels.ops.conv import (
    shadow_conv,
    shadow_conv1d,
    shadow_conv2d,
    shadow_conv3d,
    shadow_conv_transpose1d,
    shadow_conv_transpose2d,
    shadow_conv_transpose3d,
)
from wat_kernels.ops.linear import shadow_linear
from wat_kernels.tap_table import TapTable

__all__ = [
    "MatrixGrid",
    "MixedGrid",
    "MixedTable",
    "Noise",
    "TapTable",
    "draw_key",
    "draw_rows",
    "shadow_conv",
    "shadow_conv1d",
    "shadow_conv2d",
    "shadow_conv3d",
    "shadow_conv_transpose1d",
    "shadow_conv_transpose2d",
    "shadow_conv_transpose3d",
    "shadow_linear",
]
