"""The shape of a convolution to measure, and its tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Shape(NamedTuple):
    """A convolution with as many input as output channels, stride 1 and padding that keeps the size.

    weight_last: whether the weight is channels_last; contiguous as nn.Conv2d makes it otherwise
    """

    channels: int
    image: int
    kernel: int = 3
    batch: int = 16
    depthwise: bool = False
    weight_last: bool = False

    def __str__(self) -> str:
        weight = ", weight channels_last" if self.weight_last else ""
        return f"{self.channels}ch {self.image}x{self.image} k{self.kernel} batch {self.batch}{weight}"

    @property
    def groups(self) -> int:
        return self.channels if self.depthwise else 1

    @property
    def padding(self) -> int:
        return self.kernel // 2


class Tensors(NamedTuple):
    """x, dy: (N, C, H, W) channels_last; weight: (C, C / groups, k, k) in the shape's format; bias: (C,); gain: ().

    All but dy need gradients.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    gain: Tensor
    dy: Tensor

    @classmethod
    def of(cls, shape: Shape, device: str, dtype: torch.dtype) -> Tensors:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, device=device).to(dtype)

        activations = (shape.batch, shape.channels, shape.image, shape.image)
        x, dy = (normal(*activations).contiguous(memory_format=torch.channels_last) for _ in range(2))
        inputs = shape.channels // shape.groups
        weight = normal(shape.channels, inputs, shape.kernel, shape.kernel) / (inputs * shape.kernel**2) ** 0.5
        if shape.weight_last:
            weight = weight.contiguous(memory_format=torch.channels_last)
        gain = torch.tensor(1.25, device=device, dtype=dtype)  # exact in every dtype
        # dy leans towards y: the gradient of the gain is no small difference of large sums, so that it can be checked in bf16
        y = F.conv2d(x, weight, padding=shape.padding, groups=shape.groups)
        dy += y / y.float().std().to(dtype)
        leaves = (tensor.requires_grad_() for tensor in (x, weight, normal(shape.channels), gain))
        return cls(*leaves, dy)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, self.weight, self.bias, self.gain]
