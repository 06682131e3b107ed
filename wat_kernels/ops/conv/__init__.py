"""`shadow_conv`: convolution with a weight that is drawn on the way into the multiply."""

from wat_kernels.ops.conv import schema  # noqa: F401  (defines the overloads before a backend implements one)
from wat_kernels.ops.conv.op import (
    BACKENDS,
    shadow_conv,
    shadow_conv1d,
    shadow_conv2d,
    shadow_conv3d,
    shadow_conv_transpose1d,
    shadow_conv_transpose2d,
    shadow_conv_transpose3d,
)

__all__ = [
    "BACKENDS",
    "shadow_conv",
    "shadow_conv1d",
    "shadow_conv2d",
    "shadow_conv3d",
    "shadow_conv_transpose1d",
    "shadow_conv_transpose2d",
    "shadow_conv_transpose3d",
]
