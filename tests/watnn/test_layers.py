"""WATConv2d, WATConv1d, WATLinear as stand-ins for torch's layers."""

import copy
import inspect
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
import watnn
from torch import nn
from torch.utils.checkpoint import checkpoint
from watnn.transforms import WAT, Compose, DropConnect, Identity, MultiplicativeNoise, RandomAffine

from tests.conftest import DEVICE
from wat_kernels import MatrixGrid, TapTable, draw_key

TRANSLATE = RandomAffine(degrees=0, translate=(0.3, 0.3))
LAYERS = {
    "conv2d": (
        lambda **kw: watnn.WATConv2d(4, 6, 3, padding=1, **kw),
        nn.Conv2d(4, 6, 3, padding=1, device=DEVICE),
        (4, 4, 7, 6),
    ),
    "conv1d": (
        lambda **kw: watnn.WATConv1d(4, 6, 5, stride=2, **kw),
        nn.Conv1d(4, 6, 5, stride=2, device=DEVICE),
        (4, 4, 11),
    ),
    "linear": (lambda **kw: watnn.WATLinear(6, 5, **kw), nn.Linear(6, 5, device=DEVICE), (4, 6)),
}
layers = pytest.mark.parametrize("name", LAYERS)


def plain(layer, x, weight):
    """What torch computes with `weight` in place of the layer's."""
    with torch.no_grad():
        stand_in = copy.deepcopy(next(module for _, module, _ in LAYERS.values() if isinstance(layer, type(module))))
        stand_in.weight.copy_(weight)
        stand_in.bias.copy_(layer.bias)
    return stand_in(x)


TORCH_MODULES = {"Conv1d": watnn.WATConv1d, "Conv2d": watnn.WATConv2d, "Linear": watnn.WATLinear}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TORCH_MODULES)
def test_torch_s_own_module_inputs_with_the_identity(name, training):
    modules = pytest.importorskip("torch.testing._internal.common_modules", reason="needs expecttest")
    info = next(m for m in modules.module_db if m.name == f"nn.{name}")
    seen = 0
    for module_input in info.module_inputs_func(info, DEVICE, torch.float64, requires_grad=True, training=training):
        if module_input.forward_input is None:
            continue
        args, kwargs = module_input.constructor_input.args, module_input.constructor_input.kwargs
        module = info.module_cls(*args, **kwargs).double()
        layer = TORCH_MODULES[name](*args, **kwargs, transform=Identity()).double()
        layer.load_state_dict(module.state_dict())
        module.train(training)
        layer.train(training)
        results = []
        for m in (layer, module):
            given = module_input.forward_input
            args = [x.detach().requires_grad_() for x in given.args]
            kwargs = {name: x.detach().requires_grad_() for name, x in given.kwargs.items()}
            inputs = [*args, *kwargs.values()]
            y = m(*args, **kwargs)
            results.append((y, *torch.autograd.grad(y.square().sum(), [*inputs, *m.parameters()])))
        for ours, torchs in zip(*results, strict=True):
            torch.testing.assert_close(ours, torchs)
        seen += 1
    assert seen >= 1


@layers
def test_training_computes_with_the_shadow_of_a_fresh_key(name):
    build, _, shape = LAYERS[name]
    transform = Compose([TRANSLATE, MultiplicativeNoise(0.1)])
    layer, x = build(transform=transform), torch.randn(shape)
    for seed in range(5):
        torch.manual_seed(seed)
        key = draw_key(DEVICE)
        torch.manual_seed(seed)
        torch.testing.assert_close(layer(x), plain(layer, x, watnn.shadow_weight(layer, key)))
    assert not torch.equal(layer(x), layer(x))


@layers
@pytest.mark.parametrize("gain", [None, "layer", "channel"])
def test_eval_computes_with_the_plain_weight(name, gain):
    build, _, shape = LAYERS[name]
    layer, x = build(transform=TRANSLATE, gain=gain).eval(), torch.randn(shape)
    torch.testing.assert_close(layer(x), plain(layer, x, layer.weight))
    if gain is not None:
        with torch.no_grad():
            layer.gain.mul_(1.5)
        torch.testing.assert_close(layer(x), plain(layer, x, 1.5 * layer.weight))
        unscaled = build(transform=TRANSLATE, gain=gain, aom_gain=False).eval()
        unscaled.load_state_dict(layer.state_dict())
        torch.testing.assert_close(unscaled(x), plain(layer, x, layer.weight))


@layers
def test_without_a_transform_nothing_is_drawn(name):
    build, torch_layer, shape = LAYERS[name]
    layer, x = build(), torch.randn(shape)
    layer.load_state_dict(torch_layer.state_dict())
    state = torch.cuda.get_rng_state if DEVICE == "cuda" else torch.get_rng_state
    before = state()
    torch.testing.assert_close(layer(x), torch_layer(x))
    assert torch.equal(state(), before)


@layers
def test_gain_scales_the_shadow_and_learns(name):
    build, _, shape = LAYERS[name]
    layer, x = build(transform=TRANSLATE, gain="channel"), torch.randn(shape)
    with torch.no_grad():
        layer.gain.copy_(torch.rand_like(layer.gain) + 0.5)
    with watnn.dom(layer, key=5):
        y = layer(x)
        scale = layer.gain.reshape(-1, *[1] * (layer.weight.ndim - 1))
        expected = plain(layer, x, watnn.shadow_weight(layer, 5) * scale)
        torch.testing.assert_close(y, expected)
    bias = layer.bias.reshape(-1, *[1] * (y.ndim - 2))
    y.square().sum().backward()
    inner = ((y - bias) / layer.gain.reshape(bias.shape)).detach()  # what the gain multiplies
    dims = [d for d in range(y.ndim) if d != 1]
    torch.testing.assert_close(layer.gain.grad, (2 * y.detach() * inner).sum(dims), atol=1e-4, rtol=1e-4)


@layers
def test_state_dicts_load_strictly_both_ways(name):
    build, torch_layer, _ = LAYERS[name]
    layer = build(transform=WAT() if name != "linear" else DropConnect(0.1))
    assert list(layer.state_dict()) == list(torch_layer.state_dict())
    layer.load_state_dict(torch_layer.state_dict(), strict=True)
    copy.deepcopy(torch_layer).load_state_dict(layer.state_dict(), strict=True)
    with_gain = build(transform=DropConnect(0.1), gain="channel")
    with_gain.load_state_dict(torch_layer.state_dict(), strict=True)
    assert torch.equal(with_gain.gain, torch.ones_like(with_gain.gain))
    assert torch.equal(with_gain.weight, torch_layer.weight)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*gain"):
        copy.deepcopy(torch_layer).load_state_dict(with_gain.state_dict(), strict=True)


@layers
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "weights_only"])
def test_copies_compute_the_same(name, how):
    build, _, shape = LAYERS[name]
    layer, x = build(transform=TRANSLATE, gain="layer", shadows=2), torch.randn(shape)
    if how == "deepcopy":
        other = copy.deepcopy(layer)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(layer))
    else:
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        other = build(transform=TRANSLATE, gain="layer", shadows=2)
        other.load_state_dict(torch.load(file, weights_only=True))
    for layer_or_copy in (layer, other):
        watnn.dom(layer_or_copy, key=3)
    assert torch.equal(layer(x), other(x))
    assert other.weight is not layer.weight


def test_one_module_used_twice_gets_the_gradient_of_both_draws():
    layer = watnn.WATConv2d(4, 4, 3, padding=1, bias=False, transform=TRANSLATE)
    x = torch.randn(2, 4, 6, 6)
    torch.manual_seed(1)
    keys = [draw_key(DEVICE), draw_key(DEVICE)]
    torch.manual_seed(1)
    grad = torch.autograd.grad(layer(layer(x)).square().sum(), layer.weight)[0]
    weight = layer.weight.detach().requires_grad_()
    stand_in = copy.deepcopy(layer)
    del stand_in.weight
    stand_in.weight = weight
    y = x
    for key in keys:
        y = F.conv2d(y, watnn.shadow_weight(stand_in, key), padding=1)
    torch.testing.assert_close(grad, torch.autograd.grad(y.square().sum(), weight)[0])


def test_two_forwards_before_one_backward():
    layer = watnn.WATConv2d(3, 4, 3, transform=Compose([WAT(), DropConnect(0.2)]))
    x = torch.randn(2, 3, 6, 6)
    torch.manual_seed(7)
    first, second = layer(x), layer(x)
    together = torch.autograd.grad(first.square().sum() + second.square().sum(), layer.weight)[0]
    torch.manual_seed(7)
    apart = sum(torch.autograd.grad(layer(x).square().sum(), layer.weight)[0] for _ in range(2))
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_draws_the_same_again(use_reentrant):
    model = nn.Sequential(
        *(watnn.WATConv2d(3, 3, 3, padding=1, transform=Compose([WAT(), DropConnect(0.2)])) for _ in range(3))
    )
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    results = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=use_reentrant)):
        model.zero_grad()
        torch.manual_seed(4)
        run(x).square().sum().backward()
        results.append([p.grad.clone() for p in model.parameters()])
    for plain_grad, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain_grad, checkpointed)


def test_an_exponential_average_sees_parameters_only():
    model = nn.Sequential(watnn.WATConv2d(3, 4, 3, transform=WAT(), gain="channel"), nn.ReLU())
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    x = torch.randn(2, 3, 6, 6)
    average.update_parameters(model)
    with torch.no_grad():
        model[0].weight.add_(1)
    average.update_parameters(model)
    torch.testing.assert_close(average.module[0].weight, model[0].weight - 0.5)
    torch.testing.assert_close(average.eval()(x), F.conv2d(x, model[0].weight - 0.5, model[0].bias).relu())


def test_from_module_shares_parameters_and_hooks():
    conv = nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular")
    seen = []
    conv.register_forward_hook(lambda module, args, y: seen.append(module))
    layer = watnn.WATConv2d.from_module(conv, transform=WAT(), gain="layer")
    assert layer.weight is conv.weight and layer.bias is conv.bias
    assert type(conv) is nn.Conv2d and "gain" not in conv._parameters
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(layer.eval()(x), conv(x))
    assert seen == [layer, conv]


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("name", ["conv2d", "conv1d"])
def test_padding_modes(name, mode):
    cls, torch_cls = (watnn.WATConv2d, nn.Conv2d) if name == "conv2d" else (watnn.WATConv1d, nn.Conv1d)
    layer = cls(3, 4, 5, padding="same" if mode == "circular" else 2, padding_mode=mode, transform=TRANSLATE)
    module = torch_cls(3, 4, 5, padding=layer.padding, padding_mode=mode)
    x = torch.randn(2, 3, *([9, 8] if name == "conv2d" else [9]))
    with watnn.dom(layer, key=2), torch.no_grad():
        module.weight.copy_(watnn.shadow_weight(layer, 2))
        module.bias.copy_(layer.bias)
        torch.testing.assert_close(layer(x), module(x))


@layers
def test_unbatched_empty_and_channels_last(name):
    build, _, shape = LAYERS[name]
    layer, x = build(transform=TRANSLATE), torch.randn(shape)
    watnn.dom(layer, key=3)
    torch.testing.assert_close(layer(x)[1], layer(x[1]))
    assert layer(x[:0]).shape == (0, *layer(x).shape[1:])
    if name == "conv2d":
        y = layer(x.to(memory_format=torch.channels_last))
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, layer(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    layer = watnn.WATConv2d(3, 4, 3, transform=TRANSLATE, gain="channel").to(dtype)
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    with watnn.dom(layer, key=3):
        expected = F.conv2d(x.double(), watnn.shadow_weight(layer, 3).double(), layer.bias.double())
        assert layer(x).dtype == dtype
        torch.testing.assert_close(
            layer(x).double(), expected, atol=5e-2 if dtype != torch.float64 else 1e-12, rtol=1e-2
        )


def test_compiled_model_equals_eager_and_does_not_recompile():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 5)
    )
    model = watnn.convert(watnn.convert(model, WAT(), gain="layer"), DropConnect(0.2), include=nn.Linear)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 8, 8)
    compiled(x)
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in range(3):
            results = []
            for run in (model, compiled):
                torch.manual_seed(seed)
                y = run(x)
                results.append((y, *torch.autograd.grad(y.square().sum(), model.parameters())))
            for eager, other in zip(*results, strict=True):
                torch.testing.assert_close(other, eager)


def test_a_compiled_graph_draws_every_key_anew():
    """Equal random ops of one graph must not be merged: one layer applied twice draws twice."""
    layer = watnn.WATLinear(6, 5, transform=DropConnect(0.5))
    compiled = torch.compile(lambda x: (layer(x), layer(x)), fullgraph=True, backend="aot_eager")
    first, second = compiled(torch.randn(4, 6, requires_grad=True))
    assert not torch.allclose(first, second)


def test_repr_shows_what_was_chosen():
    layer = watnn.WATConv2d(3, 4, 3, transform=TRANSLATE, gain="channel", shadows=2, backend="library")
    assert repr(layer) == (
        "WATConv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), transform=RandomAffine(degrees=0, translate=(0.3, 0.3)), "
        "gain='channel', shadows=2, backend='library')"
    )


def test_layers_share_one_table_per_transform_and_kernel_size():
    model = watnn.convert(nn.Sequential(*(nn.Conv2d(2, 2, 3) for _ in range(20))), WAT())
    assert len({id(layer.tap_table) for layer in model}) == 1


def test_a_new_transform_takes_effect_at_once():
    layer, x = watnn.WATConv2d(3, 4, 3, transform=TRANSLATE), torch.randn(2, 3, 6, 6)
    layer.transform = Compose([Identity(), DropConnect(0.9)])
    with watnn.dom(layer, key=1):
        assert (watnn.shadow_weight(layer, 1) == 0).float().mean() > 0.7
        torch.testing.assert_close(layer(x), F.conv2d(x, watnn.shadow_weight(layer, 1), layer.bias))
    layer.transform = None
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias))


def recorded(on, asked):
    return lambda self, device: asked.append((self, device)) or on(self, device)


def test_tables_and_grids_go_where_the_weight_goes(monkeypatch):
    """Before a forward asks for them: a compiled graph that had to move them would be compiled a second time."""
    moved = RandomAffine(0, translate=(0.5, 0.5))
    for layer in (watnn.WATConv2d(2, 2, 3, transform=WAT()), watnn.WATLinear(4, 4, transform=moved)):
        layer.cpu()  # wherever new parameters are put
        asked = []
        for cls in (TapTable, MatrixGrid):
            monkeypatch.setattr(cls, "on", recorded(cls.on, asked))
        layer.double()
        layer.strength = 0.5
        drawn = layer._draws()
        assert len(drawn) > 1 and asked[-1] == (drawn, torch.device("cpu"))
        asked.clear()
        layer.to("meta")
        assert not asked
        monkeypatch.undo()


@pytest.mark.parametrize("name", ["Conv2d", "Conv1d", "Linear"])
def test_help_shows_every_argument_and_a_wrong_one_is_named(name):
    ours, torchs = getattr(watnn, f"WAT{name}"), getattr(nn, name)
    shown = list(inspect.signature(ours).parameters.values())
    own = [one.name for one in inspect.signature(torchs).parameters.values()]
    assert [one.name for one in shown] == [*own, "transform", "gain", "shadows", "backend", "aom_gain"]
    added = {one.name: (one.default, one.annotation) for one in shown[len(own) :]}
    assert added == {
        "transform": (None, "Transform | None"), "gain": (None, "str | None"), "shadows": (1, "int"),
        "backend": ("auto", "str"), "aom_gain": (True, "bool"),
    }  # fmt: skip
    assert all(one.kind is one.KEYWORD_ONLY for one in shown[len(own) :])
    made = list(inspect.signature(ours.from_module).parameters)
    assert made == ["module", "transform", "gain", "shadows", "backend", "aom_gain"]
    sizes = (2, 2, 3) if name.startswith("Conv") else (2, 2)
    for call in (lambda: ours(*sizes, transfrom=WAT()), lambda: ours.from_module(torchs(*sizes), transfrom=WAT())):
        with pytest.raises(
            TypeError, match=f"WAT{name} got an unexpected keyword argument 'transfrom'; accepted .* transform, gain"
        ):
            call()
    with pytest.raises(ValueError, match="gain='each'; accepted are None, 'layer', 'channel'"):
        ours(*sizes, gain="each")
