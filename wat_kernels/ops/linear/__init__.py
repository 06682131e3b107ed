"""`shadow_linear`: a linear layer with a weight that is drawn on the way into the multiply."""

from wat_kernels.ops.linear import schema  # noqa: F401  (defines the overloads before a backend implements one)
from wat_kernels.ops.linear.op import BACKENDS, shadow_linear

__all__ = ["BACKENDS", "shadow_linear"]
