"""ensemble: many shadows of each example in one forward."""

import copy

import pytest
import torch
import watnn
from torch import nn
from watnn.layers import shadow_layers
from watnn.modes import layer_keys
from watnn.transforms import WAT, Compose, DropConnect, RandomAffine

from tests.conftest import DEVICE

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(DEVICE)
TRANSFORM = Compose([WAT(), DropConnect(0.2)])


def network():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), nn.Conv2d(6, 6, 5), nn.Flatten(), nn.Linear(96, 5)
    )  # fmt: skip
    model = watnn.convert(model, TRANSFORM, gain="channel")
    model = watnn.convert(model, DropConnect(0.3), include=nn.Linear)
    model(X)  # BatchNorm statistics
    return model


def one_by_one(model, key, shadows):
    """(S, N, ...): a plain model for each shadow, with that SW as its weight."""
    keys = layer_keys(key, len(shadow_layers(model)))
    for _, layer in shadow_layers(model):
        layer.shadows = shadows
    outputs = []
    for s in range(shadows):
        plain = watnn.export(model)
        for (name, layer), k in zip(shadow_layers(model), keys, strict=True):
            scale = 1 if layer.gain is None else layer.gain.reshape(-1, 1, 1, 1)
            plain.get_submodule(name).weight.data = (watnn.shadow_weight(layer, k)[s] * scale).detach()
        outputs.append(plain(X))
    for _, layer in shadow_layers(model):
        layer.shadows = 1
    return torch.stack(outputs)


def test_equals_its_shadows_one_by_one():
    model = network()
    nn.init.uniform_(model[0].gain, 0.5, 2)
    found = watnn.ensemble(model, X, shadows=5, key=7, samples=True)
    expected = one_by_one(model, 7, 5)
    torch.testing.assert_close(found.samples, expected)
    torch.testing.assert_close(found.mean, expected.mean(0))
    torch.testing.assert_close(found.std, ((expected - expected.mean(0)) ** 2).sum(0).div(4).sqrt())
    assert found.std.min() > 0
    with watnn.dom(model.eval(), key=7):
        torch.testing.assert_close(found.samples[0], model(X))


def test_a_key_reproduces_and_none_draws_anew():
    model = network()
    first, second = (watnn.ensemble(model, X, 4, key=1) for _ in range(2))
    assert torch.equal(first.mean, second.mean) and torch.equal(first.std, second.std)
    assert first.samples is None
    torch.manual_seed(3)
    fresh = watnn.ensemble(model, X, 4)
    assert not torch.equal(fresh.mean, watnn.ensemble(model, X, 4).mean)
    torch.manual_seed(3)
    assert torch.equal(fresh.mean, watnn.ensemble(model, X, 4).mean)


class _Fails(nn.Module):
    def forward(self, x):
        raise KeyError("inside")


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before_also_after_an_error(fails):
    model = network()
    model[4].shadows = 3
    watnn.dom(model[4], key=9)
    model[1].eval()
    if fails:
        model.append(_Fails())
    statistics = copy.deepcopy(dict(model[1].named_buffers()))
    before = [
        (m.training, getattr(m, "shadows", None), getattr(m, "mode", None), getattr(m, "dom_key", None))
        for m in model.modules()
    ]
    kinds = [type(m) for m in model.modules()]
    if fails:
        with pytest.raises(KeyError, match="inside"):
            watnn.ensemble(model, X, 2)
    else:
        watnn.ensemble(model, X, 2)
    assert [
        (m.training, getattr(m, "shadows", None), getattr(m, "mode", None), getattr(m, "dom_key", None))
        for m in model.modules()
    ] == before
    assert [type(m) for m in model.modules()] == kinds
    for name, buffer in model[1].named_buffers():
        assert torch.equal(buffer, statistics[name])


class _Wrapped(nn.Module):
    """Takes two inputs and a flag; returns a mapping, a tuple, a scalar or the transpose."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, bias, kind="mapping"):
        y = self.inner(x) + bias
        return {"mapping": {"loss": y.sum(), "logits": y}, "tuple": (y, y), "sum": y.sum(), "transposed": y.mT}[kind]


def test_inputs_and_outputs():
    inner = network()
    model = _Wrapped(inner)
    bias = torch.randn(3, 5)
    expected = watnn.ensemble(inner, X, 4, key=2, samples=True).samples + bias
    for x in ((X, bias), {"x": X, "bias": bias}):
        torch.testing.assert_close(watnn.ensemble(model, x, 4, key=2).mean, expected.mean(0))
    found = watnn.ensemble(model, (X, bias, "tuple"), 4, key=2, output=lambda y: y[1].softmax(-1))
    torch.testing.assert_close(found.mean, expected.softmax(-1).mean(0))
    torch.testing.assert_close(found.mean.sum(1), torch.ones(3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m: watnn.ensemble(nn.Conv2d(3, 3, 3), X, 2),
            ValueError,
            "Conv2d has no shadow layer; convert it first",
        ),
        (lambda m: watnn.ensemble(m, X, 1), ValueError, "shadows=1; accepted is an int >= 2"),
        (lambda m: watnn.ensemble(m, X, 2.0), ValueError, r"shadows=2\.0; accepted"),
        (lambda m: watnn.ensemble(m, X, 2, key="a"), TypeError, "key is str"),
        (lambda m: watnn.ensemble(m, "x", 2), TypeError, "x is str; accepted is a tensor, or a tuple or mapping"),
        (lambda m: watnn.ensemble(_Wrapped(m), (X, X[:2]), 2), ValueError, "one batch first in all"),
        (
            lambda m: watnn.ensemble(_Wrapped(m), (X, torch.zeros(3, 1), "tuple"), 2),
            TypeError,
            "model returned tuple; .*output=",
        ),
        (
            lambda m: watnn.ensemble(_Wrapped(m), (X, torch.zeros(3, 1), "sum"), 2),
            ValueError,
            r"shape \(\) for a batch of 2 \* 3",
        ),
        (
            lambda m: watnn.ensemble(_Wrapped(m), (X, torch.zeros(3, 1), "transposed"), 2),
            ValueError,
            r"shape \(5, 6\) for a batch of 2 \* 3; accepted is \(6, \.\.\.\)",
        ),
        (
            lambda m: watnn.ensemble(m, X, 2, output=lambda y: y.tolist()),
            TypeError,
            "output returned list; accepted is a tensor",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(network())


def test_gradients_are_those_of_the_mean_over_shadows():
    model = watnn.convert(nn.Sequential(nn.Conv2d(3, 4, 3)), RandomAffine(0, translate=(0.3, 0.3)))
    mean = watnn.ensemble(model, X, 3, key=5).mean
    found = torch.autograd.grad(mean.sum(), model[0].weight)[0]
    model[0].shadows = 3
    weights = watnn.shadow_weight(model[0], 5)
    y = torch.stack([nn.functional.conv2d(X, weight) for weight in weights]).mean(0)
    torch.testing.assert_close(found, torch.autograd.grad(y.sum(), model[0].weight)[0])
