"""EfficientNet-Lite0 for 32x32 images: the layers of EfficientNet-B0 (arXiv 1905.11946, table 1) without
squeeze-and-excitation and with ReLU6 for swish, which is what makes it Lite.

Stem and second stage have stride 1, as in MobileNetV2 here.
"""

from __future__ import annotations

from .layers import scaled
from .mobilenet import MobileNet, Stage

# where the WAT paper redraws weights: the depthwise convolutions
SHADOW_LAYERS = ("blocks.*.depthwise.conv",)

_STAGES = (
    Stage(1, 16, 1, 1, 3),
    Stage(6, 24, 2, 1, 3),
    Stage(6, 40, 2, 2, 5),
    Stage(6, 80, 3, 2, 3),
    Stage(6, 112, 3, 1, 5),
    Stage(6, 192, 4, 2, 5),
    Stage(6, 320, 1, 1, 3),
)


def efficientnet_lite0(num_classes: int = 10, width_multiplier: float = 1.0) -> MobileNet:
    return MobileNet(
        _STAGES, scaled(32, width_multiplier), scaled(1280, width_multiplier), num_classes, width_multiplier
    )
