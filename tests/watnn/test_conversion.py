"""convert, revert and what they leave alone."""

import copy
import logging
import pickle

import pytest
import torch
import watnn
from torch import nn
from watnn.conversion import reasons_left
from watnn.transforms import WAT, Compose, DropConnect, MultiplicativeNoise, RandomAffine, RandomHorizontalFlip

from tests.conftest import DEVICE

TRANSLATE = RandomAffine(degrees=0, translate=(0.3, 0.3))


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 1),
        nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )


def types(model):
    return {name: type(module).__name__ for name, module in model.named_modules() if hasattr(module, "weight")}


def test_a_grid_transform_converts_the_convolutions_it_can_change(caplog):
    model = network()
    converted = watnn.convert(model, TRANSLATE)
    assert types(converted) == {
        "0": "WATConv2d", "1": "BatchNorm2d", "2": "Conv2d", "3.0": "WATConv2d", "5": "Linear",
    }  # fmt: skip
    assert types(model)["0"] == "Conv2d"
    assert converted[0].weight is not model[0].weight
    message = caplog.records[0].getMessage()
    assert message == (
        "convert: 2 layers redraw their weight, 2 are left: 2 (the transform cannot change a 1x1 kernel), "
        "5 (a grid transform; name it in include to move the whole matrix); see watnn.summary(model)"
    )
    assert [(name, module, why[:13]) for name, module, why in reasons_left(converted)] == [
        ("2", converted[2], "the transform"),
        ("5", converted[5], "a grid transf"),
    ]


def test_noise_converts_every_layer():
    converted = watnn.convert(network(), DropConnect(0.1))
    assert types(converted) == {
        "0": "WATConv2d", "1": "BatchNorm2d", "2": "WATConv2d", "3.0": "WATConv2d", "5": "WATLinear",
    }  # fmt: skip


def test_grid_and_noise_convert_convolutions_only():
    converted = watnn.convert(network(), Compose([TRANSLATE, MultiplicativeNoise(0.1)]))
    assert types(converted)["5"] == "Linear" and types(converted)["2"] == "WATConv2d"


def test_in_place_shares_everything():
    model = network()
    weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert watnn.convert(model, TRANSLATE, inplace=True) is model
    assert model[0].weight is weight
    before = weight.detach().clone()
    model(torch.randn(2, 3, 6, 6)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(weight, before)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"include": "3.*"}, {"3.0"}),
        ({"include": ["0", "3.0"]}, {"0", "3.0"}),
        ({"exclude": "0"}, {"3.0"}),
        ({"include": nn.Linear}, {"5"}),
        (
            {"include": [nn.Conv2d], "exclude": lambda name, module: module.in_channels == 3 if name == "0" else False},
            {"3.0"},
        ),
        ({"include": lambda name, module: isinstance(module, nn.Conv2d) and module.groups > 1}, {"3.0"}),
    ],
)
def test_filters(filters, expected):
    converted = watnn.convert(network(), RandomHorizontalFlip(), **filters)
    assert {name for name, kind in types(converted).items() if kind.startswith("WAT")} == expected


def test_a_linear_that_is_named_moves_as_a_matrix():
    model = nn.Sequential(nn.Linear(6, 4))
    converted = watnn.convert(model, TRANSLATE, include="0")
    x = torch.randn(3, 6)
    for key in range(8):
        with watnn.dom(converted, key=key):
            torch.testing.assert_close(
                converted(x), nn.functional.linear(x, watnn.shadow_weight(converted[0], key), model[0].bias)
            )


def test_a_bare_layer():
    conv = nn.Conv2d(3, 4, 3)
    layer = watnn.convert(conv, WAT(), inplace=True)
    assert isinstance(layer, watnn.WATConv2d) and layer.weight is conv.weight
    assert type(watnn.revert(layer)) is nn.Conv2d


def test_a_module_at_two_places_stays_one_module():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.ModuleDict({"a": conv, "b": nn.Sequential(conv)})
    converted = watnn.convert(model, TRANSLATE)
    assert isinstance(converted["a"], watnn.WATConv2d) and converted["a"] is converted["b"][0]


def test_subclasses_are_left(caplog):
    class Special(nn.Conv2d):
        pass

    model = nn.Sequential(Special(3, 3, 3), nn.Conv2d(3, 3, 3))
    converted = watnn.convert(model, TRANSLATE)
    assert type(converted[0]) is Special
    assert "1 are left: 0 (no shadow layer for Special);" in caplog.records[0].getMessage()


@pytest.mark.parametrize("gain", [None, "layer", "channel"])
def test_revert_gives_torch_layers_that_compute_what_aom_did(gain):
    model = network()
    converted = watnn.convert(model, TRANSLATE, gain=gain, inplace=True)
    weight = converted[0].weight
    for _, layer in watnn.layers.shadow_layers(converted):
        if gain is not None:
            nn.init.uniform_(layer.gain, 0.5, 2)
    x = torch.randn(2, 3, 6, 6)
    expected = converted.eval()(x)
    reverted = watnn.revert(converted)
    assert reverted is converted
    assert types(reverted) == types(network())
    assert reverted[0].weight is weight
    assert list(reverted.state_dict()) == list(network().state_dict())
    assert set(vars(reverted[0])) == set(vars(nn.Conv2d(1, 1, 1)))
    torch.testing.assert_close(reverted(x), expected)


def test_revert_drops_a_gain_that_aom_leaves_out():
    layer = watnn.WATConv2d(3, 4, 3, transform=WAT(), gain="layer", aom_gain=False).eval()
    nn.init.constant_(layer.gain, 3.0)
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(watnn.revert(layer)(x), layer(x))


def test_training_flags_and_hooks_survive():
    model = network()
    model[3].eval()
    calls = []
    model[0].register_forward_pre_hook(lambda module, args: calls.append(type(module).__name__))
    converted = watnn.convert(model, TRANSLATE, inplace=True)
    assert converted[0].training and not converted[3][0].training
    converted(torch.randn(2, 3, 6, 6))
    watnn.revert(converted)(torch.randn(2, 3, 6, 6))
    assert calls == ["WATConv2d", "Conv2d"]


def test_an_identity_conversion_leaves_nothing_to_convert():
    with pytest.raises(ValueError, match="nothing to convert"):
        watnn.convert(nn.Sequential(nn.Conv2d(3, 3, 1)), TRANSLATE)


def untouched(model, call, error, message):
    before = {name: (type(module), id(module)) for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        call(model)
    assert {name: (type(module), id(module)) for name, module in model.named_modules()} == before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])


def tied():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    model[1].weight = model[0].weight
    return model


def weight_normed():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model[1])
    return model


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        (nn.Sequential(nn.ReLU()), {}, ValueError, "nothing to convert in Sequential"),
        (network(), {"include": "nowhere.*"}, ValueError, r"include has 'nowhere\.\*', which matches no module"),
        (network(), {"exclude": nn.LSTM}, ValueError, "exclude has .*LSTM.*, which matches no module"),
        (network(), {"include": 3}, TypeError, "'int' object is not iterable|include has"),
        (network(), {"include": [3]}, TypeError, "include has 3"),
        (network(), {"gain": "pixel"}, ValueError, "gain='pixel'; accepted are None, 'layer', 'channel'"),
        (network(), {"shadows": 0}, ValueError, "shadows=0"),
        (network(), {"shadows": 1.5}, ValueError, r"shadows=1\.5"),
        (network(), {"backend": "gpu"}, ValueError, "backend='gpu'; accepted are auto, cuda"),
        (tied(), {}, ValueError, r"nothing to convert in Sequential.*0: one Parameter with 1\.weight"),
        (weight_normed(), {}, ValueError, r"1\.weight is not a leaf Parameter"),
        (watnn.convert(network(), TRANSLATE), {}, ValueError, "nothing to convert.*already a shadow layer"),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_errors_come_before_anything_changes(model, arguments, error, message, inplace):
    untouched(model, lambda m: watnn.convert(m, TRANSLATE, inplace=inplace, **arguments), error, message)


def test_wrong_kinds_of_arguments():
    with pytest.raises(TypeError, match="model is list"):
        watnn.convert([nn.Conv2d(3, 3, 3)], TRANSLATE)
    with pytest.raises(TypeError, match="transform is str"):
        watnn.convert(network(), "translate")
    with pytest.raises(ValueError, match="wrapped in DataParallel"):
        watnn.convert(nn.DataParallel(network()), TRANSLATE)


def test_what_is_left_is_said_and_can_be_silenced(caplog):
    with caplog.at_level(logging.ERROR, logger="watnn"):
        watnn.convert(network(), TRANSLATE)
    assert not caplog.records


@pytest.mark.parametrize("norm_first", [False, True])
def test_fused_encoder_layers_call_their_shadow_layers(norm_first):
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(block, 2, enable_nested_tensor=not norm_first).eval()
    x, mask = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    converted = watnn.convert(model, DropConnect(0.5), include="*linear*")
    with watnn.dom(converted, key=1):
        expected = converted(x, src_key_padding_mask=mask)
        with torch.no_grad():
            drawn = converted(x, src_key_padding_mask=mask)
    inside = ~mask.unsqueeze(2)
    torch.testing.assert_close(drawn * inside, expected * inside)
    with torch.no_grad():
        plain = converted(x, src_key_padding_mask=mask)
        torch.testing.assert_close(plain * inside, model(x, src_key_padding_mask=mask) * inside)
    assert ((drawn - plain) * inside).abs().max() > 0.01
    reverted = watnn.revert(converted)
    for module, original in zip(reverted.modules(), model.modules(), strict=True):
        names = {name for name in vars(module) if not name.startswith("_")}
        assert names == {name for name in vars(original) if not name.startswith("_")} and not hasattr(
            module, "_fused_as"
        )
        for name in ("activation_relu_or_gelu", "use_nested_tensor"):
            assert getattr(module, name, None) == getattr(original, name, None)


def test_the_log_line_is_short_whatever_the_size(caplog):
    model = nn.Sequential(nn.Conv2d(3, 3, 3), *[nn.Linear(4, 4) for _ in range(100)])
    converted = watnn.convert(nn.ModuleDict({"body": model}), TRANSLATE)
    assert len(caplog.records) == 1 and len(caplog.records[0].getMessage()) < 200
    assert "1 layers redraw their weight, 100 are left: 100 (a grid transform" in caplog.records[0].getMessage()
    converted = pickle.loads(pickle.dumps(copy.deepcopy(converted)))
    left = reasons_left(nn.Sequential(converted))
    assert [name for name, _, _ in left] == [f"0.body.{i}" for i in range(1, 101)]
    assert left[0][1] is converted["body"][1]


def test_reasons_of_two_conversions_and_none_after_revert():
    converted = watnn.convert(network(), TRANSLATE)
    converted = watnn.convert(converted, DropConnect(0.1), include="5")
    assert [name for name, _, _ in reasons_left(converted)] == ["2"]
    reverted = watnn.revert(converted)
    assert reasons_left(reverted) == [] and set(vars(reverted)) == set(vars(network()))


class Language(nn.Module):
    """An embedding, a body, and a head that has the embedding's weight."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(11, 6)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens):
        return self.head(self.body(self.wte(tokens)))


TOKENS = torch.arange(10).view(2, 5).to(DEVICE)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_tied_weight_is_left_and_named_and_the_rest_is_converted(inplace, caplog):
    model = watnn.convert(Language(), DropConnect(0.5), inplace=inplace)
    assert types(model) == {"wte": "Embedding", "body": "WATLinear", "head": "Linear"}
    assert model.head.weight is model.wte.weight
    assert [(name, why) for name, _, why in reasons_left(model)] == [
        ("wte", "no shadow layer for Embedding"),
        ("head", "one Parameter with wte.weight; name it in include to redraw it here only"),
    ]
    assert "head (one Parameter with wte.weight;" in caplog.records[0].getMessage()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("include", ["head", nn.Linear, lambda name, module: name == "head"])
def test_a_tied_weight_that_is_named_is_redrawn_at_one_place(include, inplace):
    original = Language()
    model = watnn.convert(original, DropConnect(0.5), include=include, inplace=inplace)
    assert isinstance(model.head, watnn.WATLinear) and model.head.weight is model.wte.weight
    assert (model.head.weight is original.wte.weight) == inplace
    assert sorted(model.state_dict()) == sorted(Language().state_dict())
    with watnn.dom(model, key=5):
        shadow = watnn.shadow_weight(model.head, model.head.dom_key)
        body = nn.functional.embedding(TOKENS, model.wte.weight)  # PW
        torch.testing.assert_close(model(TOKENS), model.body(body) @ shadow.T)
    assert not torch.equal(shadow, model.wte.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.wte.weight.detach().clone()
    model(TOKENS).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.wte.weight, before) and model.head.weight is model.wte.weight
    fresh = Language()
    fresh.load_state_dict(model.state_dict())
    watnn.aom(model)
    torch.testing.assert_close(fresh(TOKENS), model(TOKENS))
    assert watnn.revert(model).head.weight is model.wte.weight


def test_two_tied_linear_layers_are_left_or_both_redraw():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert types(watnn.convert(model, DropConnect(0.5))) == {"0": "Linear", "1": "Linear", "2": "WATLinear"}
    named = watnn.convert(model, DropConnect(0.5), include=["0", "1"])
    assert types(named) == {"0": "WATLinear", "1": "WATLinear", "2": "Linear"}
    assert named[0].weight is named[1].weight
    x = torch.randn(3, 4)
    with watnn.dom(named, key=1):
        first, second = (watnn.shadow_weight(layer, layer.dom_key) for layer in (named[0], named[1]))
        torch.testing.assert_close(named[:2](x), (x @ first.T + model[0].bias) @ second.T + model[1].bias)
    assert not torch.equal(first, second)


def test_a_weight_that_is_also_an_attribute_of_its_parent_is_shared():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model.register_parameter("table", model["a"].weight)
    assert types(watnn.convert(model, DropConnect(0.5))) == {"a": "Linear", "b": "WATLinear"}
    named = watnn.convert(model, DropConnect(0.5), include="a")
    assert isinstance(named["a"], watnn.WATLinear) and named.table is named["a"].weight


@pytest.mark.parametrize("mode", ["aom", "dom"])
def test_a_gain_on_a_tied_weight_is_folded_into_a_copy_only(mode):
    model = watnn.convert(Language(), DropConnect(0.5), include="head", gain="layer").eval()
    nn.init.constant_(model.head.gain, 3.0)
    untouched(model, watnn.revert, ValueError, r"head\.gain cannot be folded into head\.weight.*wte\.weight.*export")
    with pytest.warns(UserWarning, match=r"head\.weight was one Parameter with wte\.weight"):
        exported = watnn.export(model, mode=mode, key=2 if mode == "dom" else None)
    assert torch.equal(exported.wte.weight, model.wte.weight)
    if mode == "dom":
        watnn.dom(model, key=2)
    torch.testing.assert_close(exported(TOKENS), model(TOKENS))


def test_an_export_without_gain_stays_tied(recwarn):
    exported = watnn.export(watnn.convert(Language(), DropConnect(0.5), include="head"))
    assert exported.head.weight is exported.wte.weight and type(exported.head) is nn.Linear and not recwarn.list
