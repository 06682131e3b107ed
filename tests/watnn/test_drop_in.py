"""What code that knows nothing of shadow layers does to its Conv1d, Conv2d and Linear, done to ours."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
import watnn
from torch import nn
from watnn.transforms import WAT, DropConnect, Identity, MultiplicativeNoise, RandomAffine, RandomResizedCrop

from tests.conftest import DEVICE
from wat_kernels import TapTable, shadow_conv2d, shadow_linear

TRANSLATE = RandomAffine(degrees=0, translate=(0.3, 0.3))
TORCH = {"Conv1d": nn.Conv1d, "Conv2d": nn.Conv2d, "Linear": nn.Linear}
SHADOW = {name: getattr(watnn, "WAT" + name) for name in TORCH}
ARGUMENTS = {"Conv1d": (3, 4, 3), "Conv2d": (3, 4, 3), "Linear": (3, 4)}
SHAPES = {"Conv1d": (2, 3, 9), "Conv2d": (2, 3, 9, 8), "Linear": (2, 3)}
layers = pytest.mark.parametrize("name", TORCH)


@pytest.fixture
def swapped(monkeypatch):
    """torch.nn with our layers under torch's names, as users do to code that they do not own."""
    for name, cls in SHADOW.items():
        monkeypatch.setattr(nn, name, cls)


@layers
def test_under_torch_s_name(swapped, name):
    layer, plain = getattr(nn, name)(*ARGUMENTS[name], bias=False), TORCH[name](*ARGUMENTS[name], bias=False)
    assert type(layer) is SHADOW[name]
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(SHAPES[name])
    torch.testing.assert_close(layer(x), plain(x))
    layer.transform = Identity()
    torch.testing.assert_close(layer(x), plain(x))
    assert type(pickle.loads(pickle.dumps(plain))) is TORCH[name]
    assert type(copy.deepcopy(layer)) is SHADOW[name]


def test_models_are_converted_and_exported_under_torch_s_names(swapped):
    """torch's own classes are what is converted, wherever the names point."""
    model = nn.Sequential(TORCH["Conv2d"](3, 4, 3), nn.Flatten(), TORCH["Linear"](4 * 7 * 6, 5)).eval()
    x = torch.randn(2, 3, 9, 8)
    expected = model(x)
    for transform, converted in ((WAT(), 1), (DropConnect(0.5), 2)):
        shadow = watnn.convert(model, transform)
        assert sum(isinstance(m, SHADOW["Conv2d"] | SHADOW["Linear"]) for m in shadow.modules()) == converted
        for plain in (watnn.export(shadow), watnn.revert(shadow)):
            assert [type(m) for m in plain] == [TORCH["Conv2d"], nn.Flatten, TORCH["Linear"]]
            torch.testing.assert_close(plain(x), expected)


def test_a_grid_transform_with_noise_looks_at_the_kernel_under_torch_s_names(swapped):
    assert isinstance(watnn.convert(TORCH["Conv2d"](3, 4, 3), TRANSLATE), SHADOW["Conv2d"])
    with pytest.raises(ValueError, match="the transform cannot change a 1x1 kernel"):
        watnn.convert(TORCH["Conv2d"](3, 4, 1), RandomResizedCrop(scale=(0.8, 1.0)))


@layers
@pytest.mark.parametrize(("value", "type_name"), [(None, "NoneType"), ([1.0, 2.0], "list"), (np.ones(3), "ndarray")])
def test_an_input_that_is_no_tensor(name, value, type_name):
    for transform in (Identity(), MultiplicativeNoise(0.1)):
        layer = SHADOW[name](*ARGUMENTS[name], transform=transform)
        with pytest.raises(TypeError, match=f"^input is {type_name}; accepted is a tensor$"):
            layer(value)
        with pytest.raises(TypeError, match=r"input|Tensor"):  # torch's own words
            layer.eval()(value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        (argument, value)
        for argument in ("x", "weight", "bias", "gain", "key")
        for value in (None, [1.0], np.ones((4, 3)), 1.0)
        if value is not None or argument not in ("bias", "gain")
    ],
)
@pytest.mark.parametrize("op", ["shadow_conv", "shadow_linear"])
def test_an_argument_that_is_no_tensor(op, argument, value):
    if op == "shadow_conv":
        given = {"x": torch.randn(2, 3, 5, 5), "weight": torch.randn(4, 3, 3, 3), "key": 1}
        given["table"] = TapTable.identity((3, 3))
    else:
        given = {"x": torch.randn(2, 3), "weight": torch.randn(4, 3), "key": 1}
    given[argument] = value
    with pytest.raises(TypeError, match=f"^{argument} is {re.escape(type(value).__name__)}; accepted is an? "):
        (shadow_conv2d if op == "shadow_conv" else shadow_linear)(**given)


@layers
@pytest.mark.parametrize("gain", ["layer", "channel"])
def test_resetting_parameters_resets_the_gain(name, gain):
    layer = SHADOW[name](*ARGUMENTS[name], transform=Identity(), gain=gain)
    with torch.no_grad():
        layer.gain.fill_(7.0)
    torch.manual_seed(3)
    layer.reset_parameters()
    torch.manual_seed(3)
    plain = TORCH[name](*ARGUMENTS[name])
    assert torch.equal(layer.weight, plain.weight) and torch.equal(layer.bias, plain.bias)
    assert torch.equal(layer.gain, torch.ones(1 if gain == "layer" else 4)) and layer.gain.requires_grad


def test_a_model_made_on_meta_starts_with_a_gain_of_one():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv1d(4, 4, 3), nn.Linear(4, 2))
    model = watnn.convert(model, DropConnect(0.1), gain="channel")
    assert all(layer.gain.is_meta for layer in model)
    model.to_empty(device=DEVICE)
    with torch.no_grad():
        for layer in model:
            layer.gain.fill_(float("nan"))  # what uninitialised memory may hold
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for layer in model:
        assert torch.equal(layer.gain, torch.ones(len(layer.weight)))
        assert layer.weight.isfinite().all() and layer.weight.abs().max() > 0


LAZY = {"Conv1d": (nn.LazyConv1d, (4, 3)), "Conv2d": (nn.LazyConv2d, (4, 3)), "Linear": (nn.LazyLinear, (4,))}


@layers
def test_a_lazy_layer_is_converted_once_it_has_its_weight(name):
    cls, arguments = LAZY[name]
    model = nn.Sequential(cls(*arguments))
    advice = "its weight has no shape yet: call the model once, then convert it"
    with pytest.raises(ValueError, match=advice):
        watnn.convert(model, DropConnect(0.5))
    with pytest.raises(TypeError, match=f"module is {cls.__name__}; .*call it once"):
        SHADOW[name].from_module(model[0], DropConnect(0.5))
    x = torch.randn(SHAPES[name])
    y = model(x)
    converted = watnn.convert(model, DropConnect(0.5))
    assert type(converted[0]) is SHADOW[name]
    torch.testing.assert_close(converted.eval()(x), y)


@layers
@pytest.mark.parametrize("whole", [True, False])
def test_scripting_says_to_export_first_and_changes_nothing(name, whole):
    layer = SHADOW[name](*ARGUMENTS[name], transform=Identity(), gain="channel").eval()
    model = layer if whole else nn.Sequential(nn.ReLU(), layer)
    with pytest.raises(TypeError, match=r"^WAT\w+ cannot be scripted; export the model first: torch\.jit\.script\(wat"):
        torch.jit.script(model)
    assert type(model if whole else model[1]) is SHADOW[name]
    x = torch.randn(SHAPES[name])
    scripted = torch.jit.script(watnn.export(model))
    torch.testing.assert_close(scripted(x), model(x))
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))
