"""GoogLeNet for 32x32 images: arXiv 1409.4842, table 1, without auxiliary classifiers, with BatchNorm.

The stem keeps its three convolutions and loses its strides and pools (the first one is 3x3 instead of 7x7), so that the
inceptions work at 32x32, 16x16 and 8x8.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from .layers import ConvBN, scaled

# where the WAT paper redraws weights: the 3x3 and the 5x5 convolution of each inception
SHADOW_LAYERS = ("inceptions.*.conv3x3.conv", "inceptions.*.conv5x5.conv")

# name: 1x1, reduce before 3x3, 3x3, reduce before 5x5, 5x5, after the pool
_INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
_HALVED_BEFORE = ("4a", "5a")


class Inception(nn.Module):
    """Four branches side by side: 1x1, 3x3, 5x5 and a pool.

    x: (N, in_channels, H, W) -> (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, widths: list[int]):
        super().__init__()
        one, before_three, three, before_five, five, pooled = widths
        self.conv1x1 = ConvBN(in_channels, one, 1)
        self.reduce3x3 = ConvBN(in_channels, before_three, 1)
        self.conv3x3 = ConvBN(before_three, three, 3)
        self.reduce5x5 = ConvBN(in_channels, before_five, 1)
        self.conv5x5 = ConvBN(before_five, five, 5)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.after_pool = ConvBN(in_channels, pooled, 1)
        self.out_channels = one + three + five + pooled

    def forward(self, x: Tensor) -> Tensor:
        branches = (
            self.conv1x1(x),
            self.conv3x3(self.reduce3x3(x)),
            self.conv5x5(self.reduce5x5(x)),
            self.after_pool(self.pool(x)),
        )
        return torch.cat(branches, dim=1)


class GoogLeNet(nn.Module):
    """x: (N, 3, 32, 32) -> (N, num_classes)"""

    def __init__(self, num_classes: int = 10, width_multiplier: float = 1.0):
        super().__init__()
        first, channels = scaled(64, width_multiplier), scaled(192, width_multiplier)
        self.stem = nn.Sequential(ConvBN(3, first, 3), ConvBN(first, first, 1), ConvBN(first, channels, 3))
        inceptions: OrderedDict[str, nn.Module] = OrderedDict()
        for name, widths in _INCEPTIONS.items():
            if name in _HALVED_BEFORE:
                inceptions[f"halve{name}"] = nn.MaxPool2d(3, stride=2, padding=1)
            inceptions[name] = inception = Inception(channels, [scaled(width, width_multiplier) for width in widths])
            channels = inception.out_channels
        self.inceptions = nn.Sequential(inceptions)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.4)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inceptions(self.stem(x))
        return self.classifier(self.dropout(self.pool(x).flatten(1)))
