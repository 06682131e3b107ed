"""ResNet-18 and ResNet-34 for 32x32 images: arXiv 1512.03385, table 1, the stem a 3x3 convolution without pooling."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import ConvBN, scaled

_WIDTHS = (64, 128, 256, 512)  # of the four stages; each but the first halves the image

# where the WAT paper redraws weights: both 3x3 convolutions of every block, not the stem, not the shortcuts
SHADOW_LAYERS = ("stage?.*.conv[12].conv",)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes.

    x: (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = ConvBN(in_channels, out_channels, 3, stride)
        self.conv2 = ConvBN(out_channels, out_channels, 3, activation=None)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ConvBN(in_channels, out_channels, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class ResNet(nn.Module):
    """x: (N, 3, 32, 32) -> (N, num_classes)

    blocks: how many basic blocks each of the four stages has
    """

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int = 10, width_multiplier: float = 1.0):
        super().__init__()
        channels = scaled(_WIDTHS[0], width_multiplier)
        self.stem = ConvBN(3, channels, 3)
        stages = []
        for number, (width, count) in enumerate(zip(_WIDTHS, blocks, strict=True), start=1):
            stage = []
            for index in range(count):
                stride = 2 if number > 1 and index == 0 else 1
                stage.append(BasicBlock(channels, scaled(width, width_multiplier), stride))
                channels = scaled(width, width_multiplier)
            stages.append(nn.Sequential(*stage))
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage4(self.stage3(self.stage2(self.stage1(self.stem(x)))))
        return self.classifier(self.pool(x).flatten(1))


def resnet18(num_classes: int = 10, width_multiplier: float = 1.0) -> ResNet:
    return ResNet((2, 2, 2, 2), num_classes, width_multiplier)


def resnet34(num_classes: int = 10, width_multiplier: float = 1.0) -> ResNet:
    return ResNet((3, 4, 6, 3), num_classes, width_multiplier)
