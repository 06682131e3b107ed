"""Exported models quantized by torchao, and what it means for shadow layers."""

import pytest
import torch
import watnn
from torch import nn
from watnn.transforms import Compose, DropConnect, RandomAffine

quantization = pytest.importorskip("torchao.quantization")

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
CONFIGS = {
    "weight_only": lambda: quantization.Int8WeightOnlyConfig(),
    "dynamic": lambda: quantization.Int8DynamicActivationInt8WeightConfig(),
}
configs = pytest.mark.parametrize("config", CONFIGS)


def network(gain="channel"):
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10),
    )  # fmt: skip
    model = watnn.convert(model, Compose([RandomAffine(0, translate=(0.3, 0.3)), DropConnect(0.1)]), gain=gain)
    model = watnn.convert(model, DropConnect(0.2), include=nn.Linear, gain=gain)
    for name, parameter in model.named_parameters():
        if name.endswith("gain"):
            nn.init.uniform_(parameter, 0.5, 2)
    return model.eval()


@configs
@pytest.mark.parametrize("key", [None, 4])
def test_an_exported_model_is_quantized(config, key):
    model = network()
    exported = watnn.export(model) if key is None else watnn.export(model, mode="dom", key=key)
    with torch.no_grad():
        expected = exported(X)
        weights = [module.weight for module in exported.modules() if isinstance(module, nn.Linear)]
        quantization.quantize_(exported, CONFIGS[config]())
        y = exported(X)
    linears = [module for module in exported.modules() if isinstance(module, nn.Linear)]
    for module, weight in zip(linears, weights, strict=True):
        assert type(module.weight).__module__.startswith("torchao")
        steps = weight.abs().amax(1, keepdim=True) / 127  # int8, one scale for each output
        assert ((module.weight.dequantize() - weight).abs() <= 0.51 * steps).all()
        assert not torch.equal(module.weight.dequantize(), weight)
    error = (y - expected).norm() / expected.norm()
    assert 0 < error < 0.03


@configs
def test_a_quantized_shadow_layer_runs_in_aom_and_refuses_to_draw(config):
    model = network(gain=None)
    with torch.no_grad():
        expected = model(X)
        quantization.quantize_(model, CONFIGS[config]())
        assert (model(X) - expected).norm() / expected.norm() < 0.03
        with pytest.raises(
            TypeError, match=r"weight is \w+; .* cannot be redrawn .*quantize what watnn.export returns"
        ):
            watnn.dom(model, key=1)
            model(X)
        watnn.auto(model)
        with pytest.raises(TypeError, match="cannot be redrawn"):
            model.train()(X)


@configs
def test_a_gain_is_folded_in_before_quantization(config):
    model = network()
    quantization.quantize_(model, CONFIGS[config]())
    with torch.no_grad(), pytest.raises(TypeError, match="which cannot be multiplied by the gain; quantize what"):
        model(X)
