"""BatchNorm folded into the layer before it: torch.nn.utils.fusion, and torch.fx on exported models."""

import pytest
import torch
import torch.fx.experimental.optimization as fx_optimization
import watnn
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from watnn.transforms import WAT, Compose, DropConnect, MultiplicativeNoise

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
NOISY = Compose([WAT(), DropConnect(0.2)])


def conv_and_norm(gain):
    return used(nn.Sequential(watnn.WATConv2d(3, 8, 3, padding=1, transform=NOISY, gain=gain), nn.BatchNorm2d(8)), X)


def linear_and_norm(gain):
    return used(
        nn.Sequential(watnn.WATLinear(6, 5, transform=MultiplicativeNoise(0.3), gain=gain), nn.BatchNorm1d(5)),
        torch.randn(7, 6),
    )


def used(model, x):
    """With statistics, gain, scale and shift that are not those it starts with."""
    for _ in range(3):
        model(x)
    for parameter in (model[0].gain, *model[1].parameters()):
        if parameter is not None:
            nn.init.uniform_(parameter, 0.5, 2)
    return model.eval()


gains = pytest.mark.parametrize("gain", [None, "layer", "channel"])


@gains
def test_a_shadow_convolution_takes_the_norm_in(gain):
    """Equal in AOM, and in DOM too: a scale of each filter passes through its tap map and its noise."""
    model = conv_and_norm(gain)
    fused = fuse_conv_bn_eval(model[0], model[1])
    assert type(fused) is watnn.WATConv2d and not torch.allclose(fused.weight, model[0].weight)
    torch.testing.assert_close(fused(X), model(X), atol=1e-5, rtol=1e-4)
    for key in range(5):
        with watnn.dom(model, key=key), watnn.dom(fused, key=key):
            torch.testing.assert_close(fused(X), model(X), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(watnn.revert(fused)(X), model(X), atol=1e-5, rtol=1e-4)


@gains
def test_a_shadow_linear_takes_the_norm_in(gain):
    model, x = linear_and_norm(gain), torch.randn(4, 6)
    fused = fuse_linear_bn_eval(model[0], model[1])
    assert type(fused) is watnn.WATLinear and not torch.allclose(fused.weight, model[0].weight)
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-4)
    with watnn.dom(model, key=4), watnn.dom(fused, key=4):
        torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-4)


@gains
@pytest.mark.parametrize("how", ["export", "revert"])
def test_plain_layers_take_the_norm_in(gain, how):
    for model, x, fuse in (
        (conv_and_norm(gain), X, fuse_conv_bn_eval),
        (linear_and_norm(gain), torch.randn(4, 6), fuse_linear_bn_eval),
    ):
        expected = model(x)
        plain = watnn.export(model) if how == "export" else watnn.revert(model)
        fused = fuse(plain[0], plain[1])
        assert type(fused) in (nn.Conv2d, nn.Linear)
        torch.testing.assert_close(fused(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("key", [None, 0, 1, 2, 3])
def test_torch_fx_fuses_exported_models(key):
    """In AOM every norm goes; in DOM also those after a cropped kernel."""
    model = nn.Sequential(*conv_and_norm("channel"), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)).eval()
    exported = watnn.export(model) if key is None else watnn.export(model, mode="dom", key=key)
    fused = fx_optimization.fuse(exported)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    with watnn.aom(model) if key is None else watnn.dom(model, key=key):
        torch.testing.assert_close(fused(X), model(X), atol=1e-5, rtol=1e-4)
