"""The kernels of benchmarks/tma_study.py against torch, on images that no box divides."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.tma_study import Choice, Layer, forward, weight_gradient
from tests.triton.device import DEVICE

# descriptors move boxes that are multiples of 16 bytes; the interpreter knows no bf16 product
DTYPE = torch.float32 if DEVICE == "cpu" else torch.bfloat16
TOLERANCE = 1e-6 if DEVICE == "cpu" else 5e-3

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and torch.cuda.get_device_capability() < (9, 0), reason="needs compute capability 9.0"
)


@pytest.mark.parametrize("taps", [9, 6])
@pytest.mark.parametrize(("image", "box"), [(7, (1, 8, 8)), (5, (2, 2, 8))])
def test_both_passes(image, box, taps):
    layer = Layer.of(64, image, 3, taps, DEVICE, DTYPE)
    x, masked = layer.x.permute(0, 3, 1, 2).float(), layer.masked().float().requires_grad_()
    right = F.conv2d(x, masked, padding=1)
    (dweight,) = torch.autograd.grad(right, masked, layer.dy.permute(0, 3, 1, 2).float())
    y = torch.full_like(layer.dy, torch.nan)
    forward(layer, Choice(box, (64,), 4, 3), y)
    close(y, right.detach().permute(0, 2, 3, 1))
    parts = torch.full((2, 9, 64, 64), torch.nan, device=DEVICE)
    weight_gradient(layer, Choice(box, (64, 64), 4, 3, splits=2), parts)
    close(parts.sum(0).permute(1, 0, 2)[:, layer.taps], dweight.permute(0, 2, 3, 1).flatten(1, 2)[:, layer.taps])


def close(found, right):
    assert float((found.float() - right).norm() / right.norm()) < TOLERANCE
