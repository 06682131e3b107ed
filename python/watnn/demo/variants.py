"""The network and the four ways in which it is trained."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import nn

import watnn
from watnn.transforms import WAT, MultiplicativeNoise, RandomAffine, Transform


class Variant(NamedTuple):
    """label: for tables and pictures; transform: of every layer that it can change, None for the plain network."""

    label: str
    transform: Transform | None


PLAIN = "plain"
VARIANTS = {
    PLAIN: Variant("plain", None),
    "translate": Variant("WAT translate", RandomAffine(degrees=0, translate=(0.3, 0.3))),
    "choice": Variant("WAT choice", WAT()),
    "damp": Variant("DAMP noise", MultiplicativeNoise(std=0.2)),
}


def build_network(width: int) -> nn.Module:
    """A small VGG: (N, 1, 8, 8) -> (N, 10). Blocks of 3x3 convolution, BatchNorm and ReLU at 8x8, 4x4 and 2x2 pixels."""
    features = nn.Sequential(
        *_block(1, width),
        *_block(width, width),
        nn.MaxPool2d(2),
        *_block(width, 2 * width),
        *_block(2 * width, 2 * width),
        nn.MaxPool2d(2),
        *_block(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    network = nn.Sequential()
    network.add_module("features", features)
    network.add_module("classifier", nn.Linear(4 * width, 10))
    return network.to(memory_format=torch.channels_last)


def build_variants(width: int, seed: int, backend: str = "auto") -> dict[str, nn.Module]:
    """Every variant of the network that `seed` initialises: the same initial weights in all of them."""
    torch.manual_seed(seed)
    network = build_network(width)
    return {
        name: network if variant.transform is None else _converted(network, variant.transform, backend)
        for name, variant in VARIANTS.items()
    }


def _converted(network: nn.Module, transform: Transform, backend: str) -> nn.Module:
    logger = logging.getLogger("watnn")
    level = logger.level
    logger.setLevel(logging.ERROR)  # the classifier, which a grid transform leaves as it is, would be named every time
    try:
        return watnn.convert(network, transform, backend=backend)
    finally:
        logger.setLevel(level)


def _block(in_channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
