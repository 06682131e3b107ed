"""What the networks are made of: a convolution with its BatchNorm and activation, and scaled channel counts."""

from __future__ import annotations

from torch import Tensor, nn


class ConvBN(nn.Module):
    """Convolution without bias, BatchNorm, activation.

        x: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))

    kernel:     odd; the padding keeps the size at stride 1
    activation: None for a linear output
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = activation(inplace=True) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


def scaled(channels: int, multiplier: float) -> int:
    """`channels` times `multiplier` to the nearest multiple of 8, at least 8, and never less than 90 % of it.

    Source: the MobileNet papers' rule. With multiplier 1 the counts of all the networks here stay as they are.
    """
    exact = channels * multiplier
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * exact else rounded + 8
