"""The networks are the published ones, and redraw weights where the paper does."""

import math

import pytest
import torch
import watnn
from torch import nn
from watnn.bench.networks import NETWORKS
from watnn.transforms import WAT, RandomAffine

# Layer lists written out from the papers, independent of the definitions: (in, out, kernel, output size, groups, redrawn)
BOTTLENECKS = {  # in, hidden, out, kernel, size before and after the depthwise convolution
    "mobilenet_v2": [
        (32, 32, 16, 3, 32, 32),
        (16, 96, 24, 3, 32, 32), (24, 144, 24, 3, 32, 32),
        (24, 144, 32, 3, 32, 16), (32, 192, 32, 3, 16, 16), (32, 192, 32, 3, 16, 16),
        (32, 192, 64, 3, 16, 8), (64, 384, 64, 3, 8, 8), (64, 384, 64, 3, 8, 8), (64, 384, 64, 3, 8, 8),
        (64, 384, 96, 3, 8, 8), (96, 576, 96, 3, 8, 8), (96, 576, 96, 3, 8, 8),
        (96, 576, 160, 3, 8, 4), (160, 960, 160, 3, 4, 4), (160, 960, 160, 3, 4, 4),
        (160, 960, 320, 3, 4, 4),
    ],
    "efficientnet_lite0": [
        (32, 32, 16, 3, 32, 32),
        (16, 96, 24, 3, 32, 32), (24, 144, 24, 3, 32, 32),
        (24, 144, 40, 5, 32, 16), (40, 240, 40, 5, 16, 16),
        (40, 240, 80, 3, 16, 8), (80, 480, 80, 3, 8, 8), (80, 480, 80, 3, 8, 8),
        (80, 480, 112, 5, 8, 8), (112, 672, 112, 5, 8, 8), (112, 672, 112, 5, 8, 8),
        (112, 672, 192, 5, 8, 4), (192, 1152, 192, 5, 4, 4), (192, 1152, 192, 5, 4, 4), (192, 1152, 192, 5, 4, 4),
        (192, 1152, 320, 3, 4, 4),
    ],
}  # fmt: skip
INCEPTIONS = [  # size, in, 1x1, reduce, 3x3, reduce, 5x5, pooled
    (32, 192, 64, 96, 128, 16, 32, 32), (32, 256, 128, 128, 192, 32, 96, 64),
    (16, 480, 192, 96, 208, 16, 48, 64), (16, 512, 160, 112, 224, 24, 64, 64), (16, 512, 128, 128, 256, 24, 64, 64),
    (16, 512, 112, 144, 288, 32, 64, 64), (16, 528, 256, 160, 320, 32, 128, 128),
    (8, 832, 256, 160, 320, 32, 128, 128), (8, 832, 384, 192, 384, 48, 128, 128),
]  # fmt: skip


def resnet_layers(first, second, third, fourth):
    layers = [(3, 64, 3, 32, 1, False)]
    channels = 64
    for width, size, count in ((64, 32, first), (128, 16, second), (256, 8, third), (512, 4, fourth)):
        for _ in range(count):
            layers += [(channels, width, 3, size, 1, True), (width, width, 3, size, 1, True)]
            layers += [(channels, width, 1, size, 1, False)] if channels != width else []
            channels = width
    return layers


def layer_list(name):
    if name == "vgg16":
        return [
            (3, 64, 3, 32, 1, False), (64, 64, 3, 32, 1, True),
            (64, 128, 3, 16, 1, False), (128, 128, 3, 16, 1, True),
            (128, 256, 3, 8, 1, False), (256, 256, 3, 8, 1, True), (256, 256, 3, 8, 1, True),
            (256, 512, 3, 4, 1, False), (512, 512, 3, 4, 1, True), (512, 512, 3, 4, 1, True),
            (512, 512, 3, 2, 1, True), (512, 512, 3, 2, 1, True), (512, 512, 3, 2, 1, True),
        ]  # fmt: skip
    if name == "resnet18":
        return resnet_layers(2, 2, 2, 2)
    if name == "resnet34":
        return resnet_layers(3, 4, 6, 3)
    if name == "googlenet":
        layers = [(3, 64, 3, 32, 1, False), (64, 64, 1, 32, 1, False), (64, 192, 3, 32, 1, False)]
        for size, channels, one, reduce3, three, reduce5, five, pooled in INCEPTIONS:
            layers += [(channels, one, 1, size, 1, False), (channels, pooled, 1, size, 1, False)]
            layers += [(channels, reduce3, 1, size, 1, False), (reduce3, three, 3, size, 1, True)]
            layers += [(channels, reduce5, 1, size, 1, False), (reduce5, five, 5, size, 1, True)]
        return layers
    layers = [(3, 32, 3, 32, 1, False)]
    for channels, hidden, out, kernel, before, after in BOTTLENECKS[name]:
        layers += [(channels, hidden, 1, before, 1, False)] if hidden != channels else []
        layers += [(hidden, hidden, kernel, after, hidden, True), (hidden, out, 1, after, 1, False)]
    return [*layers, (320, 1280, 1, 4, 1, False)]


def multiply_adds(layer):
    channels, out, kernel, size, groups, _ = layer
    return channels // groups * out * kernel**2 * size**2


# parameters with 10 classes, and multiply-adds of the convolutions for one image. The parameters of four are as published
# elsewhere for the same adaptation (ResNet) or for 1000 classes (3,504,872 and 4,652,008, less 990 * 1281)
PARAMETERS = {
    "vgg16": 14_724_042, "resnet18": 11_173_962, "resnet34": 21_282_122, "googlenet": 5_983_402,
    "mobilenet_v2": 3_504_872 - 990 * 1281, "efficientnet_lite0": 4_652_008 - 990 * 1281,
}  # fmt: skip
MULTIPLY_ADDS = {
    "vgg16": 313_196_544, "resnet18": 555_417_600, "resnet34": 1_159_397_376, "googlenet": 1_561_133_056,
    "mobilenet_v2": 87_963_648, "efficientnet_lite0": 115_527_168,
}  # fmt: skip


def on_meta(name, **keywords):
    with torch.device("meta"):
        return NETWORKS[name].build(**keywords), torch.empty(1, 3, 32, 32)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_those_of_the_layer_list(name):
    layers = layer_list(name)
    convolutions = sum(channels // groups * out * kernel**2 for channels, out, kernel, _, groups, _ in layers)
    norms = sum(2 * layer[1] for layer in layers)
    features = 1024 if name == "googlenet" else layers[-1][1]
    model, _ = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert convolutions + norms + 10 * (features + 1) == PARAMETERS[name]
    more, _ = on_meta(name, num_classes=100)
    assert sum(p.numel() for p in more.parameters()) == PARAMETERS[name] + 90 * (features + 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_work_and_its_share_in_shadow_layers_are_those_of_the_layer_list(name):
    layers = layer_list(name)
    model, x = on_meta(name)
    counted = [
        layer for layer in watnn.flops(NETWORKS[name].convert(model, WAT()), x).layers if "Conv2d" in layer.layer
    ]
    assert sum(layer.dense for layer in counted) == 2 * MULTIPLY_ADDS[name]
    assert sorted(layer.dense for layer in counted) == sorted(2 * multiply_adds(layer) for layer in layers)
    redrawn = sorted(layer.dense for layer in counted if layer.layer == "WATConv2d")
    assert redrawn == sorted(2 * multiply_adds(layer) for layer in layers if layer[-1])


CONVERTED = {
    "vgg16": [
        "blocks.1.conv2", "blocks.2.conv2", "blocks.3.conv2", "blocks.3.conv3", "blocks.4.conv2", "blocks.4.conv3",
        "blocks.5.conv1", "blocks.5.conv2", "blocks.5.conv3",
    ],
    "resnet18": [f"stage{s}.{b}.conv{c}" for s in (1, 2, 3, 4) for b in (0, 1) for c in (1, 2)],
    "resnet34": [
        f"stage{s}.{b}.conv{c}" for s, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)) for b in range(blocks) for c in (1, 2)
    ],
    "googlenet": [
        f"inceptions.{name}.conv{size}"
        for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b") for size in ("3x3", "5x5")
    ],
    "mobilenet_v2": [f"blocks.{index}.depthwise" for index in range(17)],
    "efficientnet_lite0": [f"blocks.{index}.depthwise" for index in range(16)],
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_converted_layers_are_the_papers(name):
    model, _ = on_meta(name)
    converted = NETWORKS[name].convert(model, RandomAffine(0, translate=(0.3, 0.3)))
    found = [path for path, module in converted.named_modules() if isinstance(module, watnn.WATConv2d)]
    assert found == [f"{path}.conv" for path in CONVERTED[name]]


@pytest.mark.parametrize("name", NETWORKS)
def test_narrow_networks_give_finite_outputs_and_train_every_parameter(name):
    model = NETWORKS[name].build(num_classes=7, width_multiplier=0.125)
    model = NETWORKS[name].convert(model, WAT(), gain="channel")
    y = model(torch.randn(4, 3, 32, 32))
    assert y.shape == (4, 7) and y.isfinite().all()
    torch.nn.functional.cross_entropy(y, torch.tensor([0, 2, 4, 6])).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), path
        assert parameter.grad.abs().max() > 0, path


def test_width_scales_every_convolution_but_the_input():
    narrow, _ = on_meta("resnet18", width_multiplier=0.25)
    wide, _ = on_meta("resnet18")
    pairs = zip(narrow.modules(), wide.modules(), strict=True)
    ratios = {b.out_channels / a.out_channels for a, b in pairs if isinstance(a, nn.Conv2d)}
    assert ratios == {4.0}


@pytest.mark.parametrize("name", NETWORKS)
def test_aom_of_a_converted_network_is_the_plain_network(name):
    model = NETWORKS[name].build(width_multiplier=0.125).eval()
    converted = NETWORKS[name].convert(model, WAT())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        y = model(x)
        assert math.isfinite(float(y.std())) and float(y.std()) > 0
        torch.testing.assert_close(converted(x), y)
