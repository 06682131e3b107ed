"""The six networks of the WAT paper for 32x32 images, and in each the layers whose weight the paper redraws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

import watnn
from watnn.transforms import Transform

from . import efficientnet_lite, googlenet, mobilenet, resnet, vgg


class Network(NamedTuple):
    """A network by its title; build(num_classes=10, width_multiplier=1.0) makes one.

    shadow_layers: name patterns of the convolutions where the paper applies WAT
    """

    title: str
    build: Callable[..., nn.Module]
    shadow_layers: tuple[str, ...]

    def convert(self, model: nn.Module, transform: Transform, **keywords: Any) -> nn.Module:
        """watnn.convert of what `build` made, where the paper applies WAT; keywords are those of watnn.convert."""
        return watnn.convert(model, transform, include=self.shadow_layers, **keywords)


NETWORKS = {
    "vgg16": Network("VGG-16", vgg.VGG16, vgg.SHADOW_LAYERS),
    "resnet18": Network("ResNet-18", resnet.resnet18, resnet.SHADOW_LAYERS),
    "resnet34": Network("ResNet-34", resnet.resnet34, resnet.SHADOW_LAYERS),
    "googlenet": Network("GoogLeNet", googlenet.GoogLeNet, googlenet.SHADOW_LAYERS),
    "mobilenet_v2": Network("MobileNetV2", mobilenet.mobilenet_v2, mobilenet.SHADOW_LAYERS),
    "efficientnet_lite0": Network(
        "EfficientNet-Lite0", efficientnet_lite.efficientnet_lite0, efficientnet_lite.SHADOW_LAYERS
    ),
}
