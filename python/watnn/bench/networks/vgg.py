"""VGG-16 for 32x32 images: arXiv 1409.1556, table 1, column D, with BatchNorm and one linear layer on top."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from .layers import ConvBN, scaled

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions; each block ends in a 2x2 pool

# where the WAT paper redraws weights: the second convolution of blocks 1 and 2, the second and third of 3 and 4, all of 5
SHADOW_LAYERS = ("blocks.[12].conv2.conv", "blocks.[34].conv[23].conv", "blocks.5.conv[123].conv")


class VGG16(nn.Module):
    """x: (N, 3, 32, 32) -> (N, num_classes)"""

    def __init__(self, num_classes: int = 10, width_multiplier: float = 1.0):
        super().__init__()
        channels = 3
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (width, count) in enumerate(_BLOCKS, start=1):
            block: OrderedDict[str, nn.Module] = OrderedDict()
            for index in range(1, count + 1):
                block[f"conv{index}"] = ConvBN(channels, scaled(width, width_multiplier), 3)
                channels = scaled(width, width_multiplier)
            block["pool"] = nn.MaxPool2d(2)
            blocks[str(number)] = nn.Sequential(block)
        self.blocks = nn.Sequential(blocks)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(x).flatten(1))
