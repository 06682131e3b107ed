"""torch.nn.utils.parametrize, weight_norm and spectral_norm on shadow layers."""

import logging

import pytest
import torch
import torch.nn.functional as F
import watnn
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from watnn.transforms import WAT, DropConnect, MultiplicativeNoise, RandomAffine

X = torch.randn(4, 3, 7, 6, generator=torch.Generator().manual_seed(1))
TRANSLATE = RandomAffine(degrees=0, translate=(0.3, 0.3))


class Symmetric(nn.Module):
    def forward(self, weight):
        return (weight + weight.flip(-1)) / 2


def weight_normed(magnitude, direction):
    return magnitude * direction / direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def spectral_normed(layer, weight):
    """By the singular vectors that the layer has estimated: sigma = u^T W v."""
    norm = layer.parametrizations.weight[0]
    return weight / torch.dot(norm._u, torch.mv(weight.flatten(1), norm._v))


# how to apply the method; the weight that it stands for, made by hand from the layer and its original Parameters
METHODS = {
    "weight_norm": (parametrizations.weight_norm, lambda layer, magnitude, direction: weight_normed(magnitude, direction)),
    "spectral_norm": (parametrizations.spectral_norm, spectral_normed),
    "own": (
        lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric()),
        lambda layer, weight: (weight + weight.flip(-1)) / 2,
    ),
}  # fmt: skip
methods = pytest.mark.parametrize("method", METHODS)


def parametrized(method, transform=TRANSLATE, **arguments):
    layer = watnn.WATConv2d(3, 4, 3, padding=1, transform=transform, **arguments)
    METHODS[method][0](layer)
    assert isinstance(layer, watnn.WATConv2d) and "weight" not in layer._parameters
    return layer


def originals(layer):
    return [p for name, p in layer.named_parameters() if name.startswith("parametrizations.weight.original")]


@methods
@pytest.mark.parametrize("gain", [None, "channel"])
def test_a_training_step_is_the_one_done_by_hand(method, gain):
    layer = parametrized(method, gain=gain)
    if method == "spectral_norm":
        layer.parametrizations.weight[0].eval()  # no power iteration: it would change the estimate between the two
    by_hand = [p.detach().clone().requires_grad_() for p in originals(layer)]
    weight = METHODS[method][1](layer, *by_hand)
    torch.testing.assert_close(layer.weight, weight)
    watnn.dom(layer, key=6)
    tap_map = layer.tap_table.maps[0].new_tensor(watnn_map(layer, 6))
    shadow = torch.einsum("tp,oip->oit", tap_map, weight.flatten(2)).view_as(weight)
    scale = 1 if gain is None else 1.5
    if gain is not None:
        nn.init.constant_(layer.gain, scale)
    expected = F.conv2d(X, scale * shadow, layer.bias, padding=1)
    y = layer(X)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for ours, right in zip(originals(layer), by_hand, strict=True):
        torch.testing.assert_close(ours.grad, right.grad, atol=1e-4, rtol=1e-4)
    torch.optim.SGD(layer.parameters(), lr=0.01).step()
    for ours, right in zip(originals(layer), by_hand, strict=True):
        torch.testing.assert_close(ours, right - 0.01 * right.grad)


def watnn_map(layer, key):
    """The tap map that `key` draws, read off the shadow of kernels that are one tap each."""
    probe = watnn.WATConv2d(1, 9, 3, transform=layer.transform)
    with torch.no_grad():
        probe.weight.copy_(torch.eye(9).view(9, 1, 3, 3))
    return watnn.shadow_weight(probe, key).detach().view(9, 9).T.tolist()


@methods
def test_training_draws_and_lowers_the_loss(method):
    layer = parametrized(method, WAT())
    target = torch.randn(4, 4, 7, 6) * 0.1
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with watnn.aom(layer), torch.no_grad():
        before = F.mse_loss(layer(X), target)
    for _ in range(30):
        optimizer.zero_grad()
        F.mse_loss(layer(X), target).backward()
        optimizer.step()
    with watnn.aom(layer), torch.no_grad():
        assert F.mse_loss(layer(X), target) < 0.8 * before
        assert len({tuple(watnn.shadow_weight(layer, key).flatten().tolist()) for key in range(10)}) > 2


@methods
def test_state_dicts_are_those_of_torch_s_layer(method):
    layer, plain = parametrized(method, gain="layer"), nn.Conv2d(3, 4, 3, padding=1)
    METHODS[method][0](plain)
    assert set(layer.state_dict()) == {*plain.state_dict(), "gain"}
    layer.load_state_dict(plain.state_dict(), strict=True)
    torch.testing.assert_close(layer.eval()(X), plain.eval()(X))


@methods
@pytest.mark.parametrize("mode", ["aom", "dom"])
@pytest.mark.parametrize("gain", [None, "channel"])
def test_export_bakes_the_weight_in(method, mode, gain):
    model = nn.Sequential(parametrized(method, gain=gain), nn.ReLU()).eval()
    if gain is not None:
        nn.init.uniform_(model[0].gain, 0.5, 2)
    key = None if mode == "aom" else 3
    exported = watnn.export(model, mode=mode, key=key)
    assert not any(parametrize.is_parametrized(module) for module in exported.modules())
    assert not any(isinstance(module, watnn.WATConv2d) for module in exported.modules())
    with watnn.aom(model) if mode == "aom" else watnn.dom(model, key=key):
        torch.testing.assert_close(exported(X), model(X))
    assert parametrize.is_parametrized(model[0])


@methods
def test_removal_leaves_a_shadow_layer_that_reverts(method):
    model = nn.Sequential(parametrized(method)).eval()
    expected = model(X)
    with pytest.raises(ValueError, match=r"0\.weight is parametrized.*remove_parametrizations"):
        watnn.revert(model)
    assert type(model[0]).__name__ == "ParametrizedWATConv2d"
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is watnn.WATConv2d and isinstance(model[0].weight, nn.Parameter)
    torch.testing.assert_close(model(X), expected)
    torch.testing.assert_close(watnn.revert(model)(X), expected)
    assert type(model[0]) is nn.Conv2d


def test_a_linear_layer_with_noise():
    layer = parametrizations.weight_norm(watnn.WATLinear(6, 5, transform=MultiplicativeNoise(0.5)))
    x = torch.randn(3, 6)
    with watnn.dom(layer, key=2):
        magnitude, direction = (p.detach().clone().requires_grad_() for p in originals(layer))
        weight = magnitude * direction / direction.norm(dim=1, keepdim=True)
        factor = (watnn.shadow_weight(layer, 2) / layer.weight).detach()
        assert factor.std() > 0.2
        expected = F.linear(x, weight * factor, layer.bias)
        torch.testing.assert_close(layer(x), expected)
        expected.square().sum().backward()
        layer(x).square().sum().backward()
    for ours, right in zip(originals(layer), (magnitude, direction), strict=True):
        torch.testing.assert_close(ours.grad, right.grad, atol=1e-4, rtol=1e-4)


def test_the_older_hooks():
    """torch.nn.utils.weight_norm and spectral_norm set a weight before each forward."""
    layer = torch.nn.utils.spectral_norm(watnn.WATConv2d(3, 4, 3, transform=DropConnect(0.3), gain="layer"))
    layer(X).square().sum().backward()
    assert layer.weight_orig.grad.abs().sum() > 0
    layer.eval()
    sigma = torch.dot(layer.weight_u, torch.mv(layer.weight_orig.flatten(1), layer.weight_v))
    torch.testing.assert_close(layer.weight, layer.weight_orig / sigma)
    with pytest.raises(ValueError, match="gain cannot be folded into weight, which is no Parameter"):
        watnn.revert(layer)
    expected = layer(X)
    torch.testing.assert_close(watnn.revert(torch.nn.utils.remove_spectral_norm(layer))(X), expected)


def test_conversion_leaves_parametrized_layers_and_says_so(caplog):
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 3, 3)), nn.Conv2d(3, 3, 3))
    with caplog.at_level(logging.WARNING, logger="watnn"):
        converted = watnn.convert(model, WAT())
    assert type(converted[1]) is watnn.WATConv2d and not isinstance(converted[0], watnn.WATConv2d)
    assert "0 (parametrized: convert it first, then parametrize the shadow layer)" in caplog.records[0].getMessage()
