"""What a user may get wrong gets one clear error or warning."""

import warnings

import pytest
import torch
import watnn
from torch import nn
from torch.func import vmap
from watnn.transforms import WAT, DropConnect, RandomAffine

TRANSLATE = RandomAffine(degrees=0, translate=(0.3, 0.3))


def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))


@pytest.mark.parametrize("inplace", [False, True])
def test_converting_twice(inplace):
    model = watnn.convert(plain(), TRANSLATE)
    message = r"\(0, 2: already a shadow layer\).*converted already: watnn\.revert\(model\) first, or assign"
    with pytest.raises(ValueError, match=message):
        watnn.convert(model, WAT(), inplace=inplace)
    watnn.convert(watnn.revert(model), WAT())
    with pytest.raises(ValueError, match=r"no Conv or Linear layer\)$"):  # not converted: no advice to revert
        watnn.convert(nn.Sequential(nn.ReLU()), WAT())


@pytest.mark.parametrize(
    "call",
    [
        lambda model: watnn.dom(model),
        lambda model: watnn.export(model, mode="dom"),
        lambda model: watnn.ensemble(model, torch.randn(1, 3, 8, 8), shadows=2),
        lambda model: watnn.StrengthScheduler(model, "linear", steps=2),
    ],
    ids=["dom", "export", "ensemble", "StrengthScheduler"],
)
def test_an_unconverted_model_is_refused(call):
    with pytest.raises(ValueError, match="model Sequential has no shadow layer; convert it first"):
        call(plain())


@pytest.mark.parametrize("switch", [watnn.aom, watnn.auto])
def test_an_unconverted_model_has_no_mode_to_switch(switch):
    with pytest.warns(UserWarning, match="model Sequential has no shadow layer; there is no mode to switch") as caught:
        switch(plain())
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        switch(watnn.convert(plain(), TRANSLATE))
        watnn.flops(plain(), torch.randn(1, 3, 8, 8))


def test_export_in_the_middle_of_training_with_chunks():
    model = watnn.convert(plain(), DropConnect(0.5), shadows=2)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    with pytest.warns(
        UserWarning, match=r"0 has shadows=2 \(2 layers with shadows > 1\): each chunk .* that of shadows=1"
    ):
        exported = watnn.export(model, mode="dom", key=3)
    assert not exported.training and model.training and model[0].weight.grad is not None
    for _, layer in watnn.layers.shadow_layers(model):
        layer.shadows = 1
    x = torch.randn(1, 3, 8, 8)
    with watnn.dom(model, key=3):
        torch.testing.assert_close(exported(x), model(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exported = watnn.export(model)  # PW has no chunks
    assert all(parameter.grad is None for parameter in exported.parameters())


def test_vmap_where_randomness_is_forbidden():
    model = watnn.convert(plain(), TRANSLATE)
    x = torch.randn(2, 3, 8, 8)
    messages = []
    for module in (model, nn.Dropout()):
        with pytest.raises(RuntimeError, match="called random operation while in randomness error mode") as error:
            vmap(module)(x)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
