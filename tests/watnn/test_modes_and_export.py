"""aom, dom, auto; export; shadow_weight; flops."""

import pytest
import torch
import torch.nn.functional as F
import watnn
from torch import nn
from watnn.layers import shadow_layers
from watnn.modes import layer_keys
from watnn.transforms import WAT, Compose, DropConnect, RandomAffine, RandomRotation, RandomVerticalFlip

from tests.conftest import DEVICE

TRANSLATE = RandomAffine(degrees=0, translate=(0.3, 0.3))


def network(transform=TRANSLATE, **arguments):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 5),
        nn.Flatten(),
        nn.Linear(6 * 16, 5),
    )
    return watnn.convert(model, transform, **arguments)


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def test_default_is_shadow_in_training_and_plain_in_eval():
    model = network()
    assert not torch.equal(model[0](X), model[0](X)) or not torch.equal(model[0](X), model[0](X))
    model.eval()
    torch.testing.assert_close(model[0](X), F.conv2d(X, model[0].weight, model[0].bias, padding=1))


def test_aom_computes_with_the_plain_weight_also_in_training():
    model = network()
    with watnn.aom(model):
        torch.testing.assert_close(model[0](X), F.conv2d(X, model[0].weight, model[0].bias, padding=1))
    assert model[0].mode == "auto" and model[0].computes_shadow


def test_dom_with_a_key_is_the_same_every_time():
    model = network().eval()
    watnn.dom(model, key=12)
    first = model(X)
    assert torch.equal(first, model(X))
    keys = layer_keys(12, 2)
    assert [layer.dom_key for _, layer in shadow_layers(model)] == keys
    torch.testing.assert_close(
        model[0](X), F.conv2d(X, watnn.shadow_weight(model[0], keys[0]), model[0].bias, padding=1)
    )
    watnn.auto(model)
    assert not torch.equal(first, model(X))


def test_dom_without_a_key_draws_anew():
    model = network(DropConnect(0.5)).eval()
    with watnn.dom(model):
        assert not torch.equal(model(X), model(X))


def test_blocks_nest_and_restore():
    model = network()
    watnn.dom(model, key=1)
    with watnn.aom(model) as inside:
        assert inside is model and {layer.mode for _, layer in shadow_layers(model)} == {"aom"}
        with watnn.dom(model, key=9):
            assert model[0].dom_key == 9
        assert model[0].mode == "aom"
    assert model[0].mode == "dom" and model[0].dom_key == 1
    with pytest.raises(KeyError), watnn.auto(model):
        raise KeyError
    assert model[0].mode == "dom"


def test_layer_keys_start_with_the_key_and_differ():
    keys = layer_keys(-5, 50)
    assert keys[0] == -5 and len(set(keys)) == 50
    assert layer_keys(-5, 3) == keys[:3]
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_batchnorm_can_be_recalibrated_for_either_mode():
    model = network()
    with watnn.aom(model):
        torch.optim.swa_utils.update_bn([X], model)
    expected = F.conv2d(X, model[0].weight, model[0].bias, padding=1).mean((0, 2, 3))
    torch.testing.assert_close(model[1].running_mean, expected)


@pytest.mark.parametrize(
    "transform", [TRANSLATE, WAT(), RandomRotation(90), Compose([TRANSLATE, DropConnect(0.3)])], ids=str
)
@pytest.mark.parametrize("gain", [None, "channel"])
def test_an_exported_model_computes_the_same_with_torch_modules_only(transform, gain):
    model = network(transform, gain=gain).eval()
    for _, layer in shadow_layers(model):
        if gain:
            nn.init.uniform_(layer.gain, 0.5, 2)
    plain = watnn.export(model)
    torch.testing.assert_close(plain(X), model(X), atol=1e-4, rtol=1e-4)
    for key in range(12):
        exported = watnn.export(model, mode="dom", key=key)
        with watnn.dom(model, key=key):
            torch.testing.assert_close(exported(X), model(X), atol=1e-4, rtol=1e-4)
        assert all(type(module).__module__.startswith("torch.nn") for module in exported.modules())
    assert isinstance(model[0], watnn.WATConv2d)  # the model itself stays as it was


GEOMETRIES = [
    {"padding": 1},
    {"padding": 0, "stride": 2},
    {"padding": (3, 2), "dilation": (2, 3), "stride": (2, 1)},
    {"padding": "same", "dilation": 2},
    {"padding": 2, "padding_mode": "reflect"},
    {"padding": (1, 2), "padding_mode": "circular", "stride": 3},
    {"padding": "same", "padding_mode": "replicate"},
    {"groups": 3, "bias": False},
]


@pytest.mark.parametrize("kernel", [3, (2, 4), (5, 1)])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_cropped_convolutions_for_every_geometry(kernel, geometry):
    layer = watnn.WATConv2d(6, 6, kernel, transform=RandomAffine(0, translate=(0.6, 0.6)), **geometry)
    x = torch.randn(2, 6, 12, 13)
    for key in range(20):
        exported = watnn.export(layer, mode="dom", key=key)
        with watnn.dom(layer, key=key):
            torch.testing.assert_close(exported(x), layer(x), atol=1e-4, rtol=1e-4)


def test_a_translated_kernel_is_exported_smaller():
    layer = watnn.WATConv2d(3, 4, 3, padding=1, transform=TRANSLATE)
    sizes = set()
    for key in range(60):
        exported = watnn.export(layer, mode="dom", key=key)
        conv = exported[-1] if isinstance(exported, nn.Sequential) else exported
        sizes.add(conv.kernel_size)
        assert tuple(conv.weight.shape[2:]) == conv.kernel_size
    assert sizes == {(3, 3), (2, 3), (3, 2), (2, 2)}


def test_export_without_cropping_keeps_kernels_whole():
    model = network(gain="channel").eval()
    for key in range(5):
        exported = watnn.export(model, mode="dom", key=key, crop=False)
        assert [type(m) for m in exported] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.Flatten, nn.Linear]
        assert exported[0].weight.shape == model[0].weight.shape and exported[0].padding == (1, 1)
        with watnn.dom(model, key=key):
            torch.testing.assert_close(exported(X), model(X), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [11, 12])
def test_conv1d_and_linear_export(length):
    conv = watnn.WATConv1d(3, 4, 5, padding=2, stride=2, transform=RandomAffine(0, translate=(0.5, 0)))
    x = torch.randn(2, 3, length)
    linear = watnn.WATLinear(
        length, 4, transform=Compose([RandomVerticalFlip(), RandomAffine(0, translate=(0.3, 0.3))])
    )
    for key in range(12):
        for layer in (conv, linear):
            exported = watnn.export(layer, mode="dom", key=key)
            with watnn.dom(layer, key=key):
                torch.testing.assert_close(exported(x), layer(x))


def test_a_kernel_moved_out_of_sight_exports_as_its_bias():
    layer = watnn.WATConv2d(3, 4, 1, transform=RandomAffine(0, translate=(1.0, 1.0)))
    x = torch.randn(2, 3, 5, 5)
    for key in range(8):
        with watnn.dom(layer, key=key):
            torch.testing.assert_close(watnn.export(layer, mode="dom", key=key)(x), layer(x))


def test_export_uses_the_key_of_the_mode():
    model = network().eval()
    with watnn.dom(model, key=77):
        torch.testing.assert_close(watnn.export(model, mode="dom")(X), model(X), atol=1e-5, rtol=1e-4)


def test_export_of_chunks_keeps_the_first_and_says_so():
    layer = watnn.WATConv2d(3, 4, 3, transform=DropConnect(0.5), shadows=2)
    with pytest.warns(UserWarning, match="shadows > 1"):
        exported = watnn.export(layer, mode="dom", key=3)
    torch.testing.assert_close(exported.weight, watnn.shadow_weight(layer, 3)[0])


def test_shadow_weight_is_differentiable_and_leaves_the_gain_out():
    layer = watnn.WATConv2d(3, 4, 3, transform=TRANSLATE, gain="layer")
    nn.init.constant_(layer.gain, 5.0)
    for key in range(4):
        shadow = watnn.shadow_weight(layer, key)
        assert shadow.abs().max() <= layer.weight.abs().max() + 1e-6
        grad = torch.autograd.grad(shadow.sum(), layer.weight)[0]
        assert set(grad.unique().tolist()) <= {0.0, 1.0}


def test_flops_of_a_translated_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    model = watnn.convert(model, TRANSLATE)
    report = watnn.flops(model, torch.randn(2, 3, 10, 10))
    dense = 2 * 2 * 8 * 100 * 3 * 9
    assert [row.name for row in report.layers] == ["0", "2"]
    assert report.layers[0].dense == dense
    # P(shift 0) = 1 / 1.8 on each axis, else one of three lines is lost
    share = (1 / 1.8 + 0.8 / 1.8 * 2 / 3) ** 2
    assert report.layers[0].expected == pytest.approx(dense * share, rel=1e-6)
    assert report.layers[1].expected == report.layers[1].dense == 2 * 2 * 8 * 100 * 8
    assert report.expected == pytest.approx(dense * share + 2 * 2 * 8 * 100 * 8)
    assert "total" in str(report)
    assert model.training and model[0].mode == "auto"


def test_flops_of_a_key_are_those_of_the_exported_model():
    model = watnn.convert(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2)), WAT())
    x = torch.randn(2, 3, 10, 10)
    for key in range(6):
        exported = watnn.export(model, mode="dom", key=key)
        counter = torch.utils.flop_counter.FlopCounterMode(display=False)
        with counter, torch.no_grad():
            exported(x)
        assert watnn.flops(model, x, key=key).exported == pytest.approx(counter.get_total_flops())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: watnn.dom(nn.Sequential(nn.Conv2d(3, 3, 3))), ValueError, "no shadow layer; convert it first"),
        (lambda: watnn.dom(network(), key=1.5), TypeError, "key is float"),
        (lambda: watnn.dom(network(), key=True), TypeError, "key is bool"),
        (lambda: watnn.dom(network(), key=2**63), ValueError, "does not fit 64 bits"),
        (lambda: watnn.export(network(), mode="sw"), ValueError, "mode='sw'; accepted are 'aom' and 'dom'"),
        (lambda: watnn.export(network(), key=3), ValueError, "key=3 with mode='aom'"),
        (lambda: watnn.export(nn.Conv2d(3, 3, 3), mode="dom"), ValueError, "no shadow layer"),
        (lambda: watnn.shadow_weight(nn.Conv2d(3, 3, 3), 0), TypeError, "layer is Conv2d"),
        (lambda: watnn.shadow_weight(network()[0], "0"), TypeError, "key is str"),
        (lambda: watnn.flops(network(), X, key=0.5), TypeError, "key is float"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_key_of_dom_follows_the_weight_to_another_device():
    layer = watnn.WATConv2d(3, 4, 3, transform=TRANSLATE)
    watnn.dom(layer, key=-7)
    layer.to("meta")
    assert layer.dom_key == -7
    layer.to_empty(device=DEVICE)
    assert layer.dom_key == -7 and layer._key(X).device == X.device
