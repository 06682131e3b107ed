"""MobileNetV2 for 32x32 images (arXiv 1801.04381, table 2), and the inverted residuals that EfficientNet-Lite shares.

The stem and the second stage, which halve a 224x224 image, have stride 1: the stages work at 32x32, 16x16, 8x8 and 4x4.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from .layers import ConvBN, scaled

# where the WAT paper redraws weights: the depthwise convolutions
SHADOW_LAYERS = ("blocks.*.depthwise.conv",)


class Stage(NamedTuple):
    """`repeats` inverted residuals, the first of them with `stride`."""

    expansion: int
    channels: int
    repeats: int
    stride: int
    kernel: int = 3


_STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 1),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 to more channels, a depthwise convolution, 1x1 to few channels; a shortcut where the shape stays.

    x: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, kernel: int):
        super().__init__()
        hidden = in_channels * expansion
        self.expand = ConvBN(in_channels, hidden, 1, activation=nn.ReLU6) if expansion > 1 else nn.Identity()
        self.depthwise = ConvBN(hidden, hidden, kernel, stride, groups=hidden, activation=nn.ReLU6)
        self.project = ConvBN(hidden, out_channels, 1, activation=None)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_shortcut else y


class MobileNet(nn.Module):
    """Stem, stages of inverted residuals, a 1x1 convolution, a classifier.

        x: (N, 3, 32, 32) -> (N, num_classes)

    stem, head: their channels
    """

    def __init__(self, stages: tuple[Stage, ...], stem: int, head: int, num_classes: int, width_multiplier: float):
        super().__init__()
        channels = stem
        self.stem = ConvBN(3, stem, 3, activation=nn.ReLU6)
        blocks = []
        for stage in stages:
            width = scaled(stage.channels, width_multiplier)
            for index in range(stage.repeats):
                stride = stage.stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, width, stage.expansion, stride, stage.kernel))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvBN(channels, head, 1, activation=nn.ReLU6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(head, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(self.dropout(self.pool(x).flatten(1)))


def mobilenet_v2(num_classes: int = 10, width_multiplier: float = 1.0) -> MobileNet:
    head = scaled(1280, max(1.0, width_multiplier))  # the paper leaves the last convolution wide below 1
    return MobileNet(_STAGES, scaled(32, width_multiplier), head, num_classes, width_multiplier)
