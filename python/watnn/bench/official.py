"""The baselines: what one would write with torch and torchvision, from their descriptions.

The official pipeline of WAT (arXiv 2405.19590) hands the weight, as a batch of O images with I channels, to
torchvision's RandomAffine or RandomResizedCrop, multiplies the result by a learnable scale, and convolves with it. What
torchvision does with a tensor is written out here, so that it need not be installed: an affine transform samples a
grid, nearest, and fills with zeros what a sampled channel of ones finds outside; a resized crop cuts and resizes,
bilinear and antialiased, unless the crop is the whole.

The functions whose names begin with `traced` are the same for torch.compile: no value goes through Python, so that they
become one graph, which is the best case for the compiler.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TRANSLATE = 0.3
CROP_SCALE = (0.8, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
_TRIES = 10  # torchvision's, before it falls back to the whole


def draw_shift(size: int) -> tuple[int, int]:
    """(dx, dy) in taps, as RandomAffine(0, translate=(0.3, 0.3)) draws it for a size x size image."""
    most = TRANSLATE * size
    return tuple(round(torch.empty(1).uniform_(-most, most).item()) for _ in range(2))


def translated(weight: Tensor, shift: tuple[int, int]) -> Tensor:
    """weight (O, I, k, k) moved by (dx, dy) taps, zeros where nothing came from."""
    theta = [[1.0, 0.0, -2 * shift[0] / weight.shape[3]], [0.0, 1.0, -2 * shift[1] / weight.shape[2]]]
    moved, outside = _sampled(weight, torch.tensor(theta, dtype=weight.dtype, device=weight.device))
    moved[outside] = weight.new_zeros(1, weight.shape[1], 1, 1).expand_as(weight)[outside]
    return moved


def traced_draw_shift(size: int, device: torch.device) -> Tensor:
    """As draw_shift, (2,) float32 on `device`."""
    most = TRANSLATE * size
    return torch.empty(2, device=device).uniform_(-most, most).round()


def traced_translated(weight: Tensor, shift: Tensor) -> Tensor:
    offsets = -2 * shift / weight.shape[3]
    theta = torch.cat((torch.eye(2, device=weight.device), offsets.unsqueeze(1)), dim=1).to(weight.dtype)
    moved, outside = _sampled(weight, theta)
    return torch.where(outside, 0.0, moved)


def _sampled(weight: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """weight sampled on the grid of theta (2, 3), and where that fell outside."""
    height, width = weight.shape[2:]
    grid = F.affine_grid(theta.unsqueeze(0), [1, 1, height, width], align_corners=False).expand(len(weight), -1, -1, -1)
    with_ones = torch.cat((weight, weight.new_ones(len(weight), 1, height, width)), dim=1)
    sampled = F.grid_sample(with_ones, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return sampled[:, :-1], sampled[:, -1:].expand_as(weight) < 0.5


def draw_box(size: int) -> tuple[int, int, int, int]:
    """(top, left, height, width), as RandomResizedCrop(scale=(0.8, 1.0)) draws it for a size x size image."""
    for _ in range(_TRIES):
        area = size * size * torch.empty(1).uniform_(*CROP_SCALE).item()
        ratio = math.exp(torch.empty(1).uniform_(*map(math.log, CROP_RATIO)).item())
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= size and 0 < height <= size:
            top = int(torch.randint(0, size - height + 1, (1,)).item())
            left = int(torch.randint(0, size - width + 1, (1,)).item())
            return top, left, height, width
    return 0, 0, size, size


def resized_crop(weight: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """weight (O, I, k, k) cut to the box and resized to k x k. Traced, it becomes one graph for each box."""
    top, left, height, width = box
    size = weight.shape[2:]
    cut = weight[:, :, top : top + height, left : left + width]
    if cut.shape == weight.shape:
        return cut
    # torchvision resizes in fp32 what is not fp32 or fp64
    exact = cut if cut.dtype in (torch.float32, torch.float64) else cut.float()
    return F.interpolate(exact, size=size, mode="bilinear", align_corners=False, antialias=True).to(weight.dtype)


def multiplied(weight: Tensor, std: float) -> Tensor:
    """Multiplicative Gaussian noise on each weight, as one writes it."""
    return weight * (1 + std * torch.randn_like(weight))
