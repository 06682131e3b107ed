"""`shadow_conv2d`: convolution with a weight that is drawn on the way into the multiply."""

from wat_kernels.ops.conv2d import schema  # noqa: F401  (defines the overloads before a backend implements one)
from wat_kernels.ops.conv2d.op import BACKENDS, shadow_conv2d

__all__ = ["BACKENDS", "shadow_conv2d"]
