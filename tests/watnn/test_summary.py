"""watnn.summary: each column, what is left, what is never called, and that the model is not touched."""

import io
import sys

import pytest
import torch
import watnn
from torch import nn
from watnn.transforms import Compose, DropConnect, RandomAffine

from tests.conftest import DEVICE
from wat_kernels.extension import NATIVE

TRANSLATE = RandomAffine(degrees=0, translate=(0.3, 0.3))
BEST = "native" if NATIVE.available else "library"


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.unused = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv(x)
        x = self.norm(self.depthwise(self.depthwise(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def model():
    return watnn.convert(Model(), TRANSLATE)


X = torch.randn(2, 4, 6, 5).to(DEVICE)
SHARE = TRANSLATE.tap_table((3, 3)).mean_active_taps / 9


def test_every_column(model):
    conv, depthwise, unused = watnn.summary(model, X).layers
    assert (conv.name, conv.layer, conv.shape, conv.transform) == ("conv", "WATConv2d", (8, 4, 3, 3), repr(TRANSLATE))
    assert (conv.calls, conv.backend, conv.passed_over) == (1, BEST, () if NATIVE.available else conv.passed_over)
    dense = 2 * 2 * 6 * 5 * 8 * 4 * 9
    assert conv.dense == dense and conv.taps == pytest.approx(SHARE) and conv.expected == pytest.approx(dense * SHARE)
    assert (depthwise.calls, depthwise.dense) == (2, 2 * 2 * 2 * 6 * 5 * 8 * 9)
    assert (unused.calls, unused.backend, unused.dense, unused.expected) == (0, "", 0, 0.0)


def test_what_is_left_and_what_is_never_called(model):
    found = watnn.summary(model, X)
    assert found.never_called == ("unused",)
    assert [(weight.name, weight.layer, weight.shape) for weight in found.left] == [("head", "Linear", (5, 8))]
    assert found.left[0].reason.startswith("a grid transform; name it in include")
    excluded = watnn.convert(Model(), TRANSLATE, exclude="conv")
    assert next((w.name, w.reason) for w in watnn.summary(excluded).left) == ("conv", "not converted")


def test_without_inputs_what_a_forward_tells_stays_open(model):
    found = watnn.summary(model)
    assert [(layer.calls, layer.backend, layer.dense) for layer in found.layers] == [(None, None, None)] * 3
    assert found.never_called == ()
    assert "?" in str(found)


@pytest.mark.skipif(not NATIVE.available, reason=NATIVE.reason)
def test_why_a_faster_backend_is_not_used(model):
    conv = watnn.summary(model.double(), X.double()).layers[0]
    assert conv.backend == "library"
    assert conv.passed_over == (("native", "torch.float64 is not float32 or bfloat16"),)
    text = str(watnn.summary(model, X.double()))
    assert "not native for conv, depthwise: torch.float64 is not float32 or bfloat16" in text


def test_a_named_backend_and_the_environment(model, monkeypatch):
    model.conv.backend = "reference"
    monkeypatch.setenv("WAT_BACKEND", "library")
    conv, depthwise, _ = watnn.summary(model, X).layers
    assert (conv.backend, conv.passed_over) == ("reference", ())
    assert (depthwise.backend, depthwise.passed_over) == ("library", ())


def test_an_elementwise_noise_skips_nothing():
    model = watnn.convert(Model(), DropConnect(0.5))
    found = watnn.summary(model, X)
    head = found.layers[-1]
    assert (head.name, head.taps, head.dense, head.expected, head.backend) == ("head", 1.0, 2 * 2 * 8 * 5, 160.0, BEST)
    assert found.left == ()


def test_the_backend_is_that_under_autocast(model):
    with torch.autocast(DEVICE, torch.bfloat16):
        assert watnn.summary(model, X).layers[0].backend == BEST


@pytest.mark.parametrize("training", [True, False])
def test_model_and_generators_stay_as_they_were(model, training):
    model.train(training)
    model.norm.eval()
    watnn.sync_draws(model, key=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    key = model.conv.shared_keys.draw()
    watnn.sync_draws(model, key=3)
    state = torch.get_rng_state()
    watnn.summary(model, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.conv.shared_keys.draw(), key)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.training, model.conv.training, model.norm.training) == (training, training, False)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert {(layer.mode, layer.dom_key) for layer in (model.conv, model.depthwise)} == {("auto", None)}


def test_records_are_plain_data(model):
    record = watnn.summary(model, X).records()[1]
    assert record["name"] == "depthwise" and record["calls"] == 2 and record["shape"] == (8, 1, 3, 3)


def test_as_text(model):
    lines = str(watnn.summary(model, X)).splitlines()
    assert lines[0].split() == [
        "layer",
        "type",
        "weight",
        "transform",
        "calls",
        "backend",
        "taps",
        "FLOPs",
        "plain",
        "expected",
    ]
    assert lines[1].split()[:3] == ["conv", "WATConv2d", "8x4x3x3"]
    assert lines[1].split()[-3:] == [f"{SHARE:.0%}", "34,560", f"{34560 * SHARE:,.0f}"]
    assert any(line.startswith("never called: unused;") for line in lines)
    assert lines[-1].startswith("left as it is: head (a grid transform;")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_printed_by_rich_on_a_terminal_only(model, monkeypatch, terminal):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    model.conv.transform = Compose([TRANSLATE])  # brackets are no markup
    watnn.summary(model, X).print()
    assert repr(model.conv.transform) in out.getvalue()
    assert ("┃" in out.getvalue()) == terminal
    assert "depthwise" in out.getvalue() and "never called: unused" in out.getvalue()


def test_not_a_module():
    with pytest.raises(TypeError, match=r"model is int; accepted is a torch\.nn\.Module"):
        watnn.summary(3)
