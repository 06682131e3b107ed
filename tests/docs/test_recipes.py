"""The snippets of docs/recipes.md, docs/concept.md and docs/index.md run, and give what the pages say."""

import pytest
import torch
import watnn
from torch import nn
from watnn.transforms import WAT, DropConnect

from tests.docs.snippets import sections

RECIPES = sections("recipes.md")
PREAMBLE, *TITLES = RECIPES
DATA = torch.utils.data.TensorDataset(torch.randn(12, 3, 8, 8), torch.arange(12) % 3)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


def train(model):
    model(DATA[:4][0]).sum().backward()


def run(title):
    names = {"model": network(), "loader": torch.utils.data.DataLoader(DATA, batch_size=4), "train": train}
    names |= {"plain": names["model"], "pretrained": network()}
    for snippet in RECIPES[PREAMBLE] + RECIPES[title]:
        # inductor takes long to compile; tests/ecosystem/test_compile.py goes that far
        exec(snippet.replace("fullgraph=True", 'fullgraph=True, backend="aot_eager"'), names)
    return names


def gradients(names):
    return [layer.weight.grad for _, layer in watnn.layers.shadow_layers(names["model"])]


def check_training(names):
    first, last = names["model"][0], names["model"][7]
    assert first.transform == WAT() and last.transform == DropConnect(0.1)
    assert not torch.equal(first.weight, names["plain"][0].weight)  # the optimizer has moved it


def check_compile(names):
    eager, inputs = gradients(names), list(names["loader"])
    assert all(grad.any() for grad in eager)
    torch.manual_seed(5)
    compiled = names["compiled"](inputs[0][0])
    torch.manual_seed(5)
    torch.testing.assert_close(compiled, names["model"](inputs[0][0]), atol=1e-4, rtol=1e-4)


def check_autocast(names):
    assert names["y"].dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 and grad.any() for grad in gradients(names))


def check_devices(names):
    layers = watnn.layers.shadow_layers(names["model"])
    watnn.sync_draws(names["model"], key=2)
    torch.manual_seed(0)
    first = names["model"](DATA[:4][0])
    watnn.sync_draws(names["model"], key=2)
    torch.manual_seed(1)
    assert torch.equal(first, names["model"](DATA[:4][0])) and len(layers) == 2


def check_checkpoints(names):
    assert torch.equal(names["first"], names["again"])
    assert torch.equal(names["model"][0].weight, names["pretrained"][0].weight)
    assert not torch.equal(names["model"][0].weight, names["plain"][0].weight)


def check_activation_checkpointing(names):
    assert all(grad.any() for grad in gradients(names))


def check_shadows(names):
    layer = names["layer"]
    x = torch.randn(4, 3, 8, 8)
    with watnn.dom(layer, key=3):
        weights = watnn.shadow_weight(layer, key=3)
        expected = [nn.functional.conv2d(x[s : s + 1], weights[s], layer.bias) for s in range(4)]
        torch.testing.assert_close(layer(x), torch.cat(expected), atol=1e-5, rtol=1e-4)
    assert names["y"].shape == (32, 8, 6, 6)


def check_batchnorm(names):
    conv, norm = names["model"][0], names["model"][1]
    means = [nn.functional.conv2d(x, conv.weight, conv.bias).mean((0, 2, 3)) for x, _ in names["loader"]]
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))


def check_schedules(names):
    assert names["model"][0].strength == pytest.approx(0.5)  # half of a cosine of ten steps
    assert names["state"]["last_epoch"] == 5


def check_ensembles(names):
    torch.testing.assert_close(names["mean"].sum(-1), torch.ones(4))
    assert names["std"].shape == (4, 3) and names["std"].any()


def check_export(names):
    x, model = torch.randn(2, 3, 8, 8), names["model"].eval()
    torch.testing.assert_close(names["aom"](x), model(x), atol=1e-5, rtol=1e-4)
    with watnn.dom(model, key=7):
        torch.testing.assert_close(names["dom"](x), model(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(names["program"].module()(x), names["dom"](x))


def check_cost(names):
    dense = watnn.flops(names["model"], names["x"]).dense
    assert 0 < names["counter"].get_total_flops() <= 3 * dense


CHECKS = {
    "A training script": check_training,
    "torch.compile": check_compile,
    "Autocast": check_autocast,
    "Several devices": check_devices,
    "Checkpoints": check_checkpoints,
    "Activation checkpointing": check_activation_checkpointing,
    "Shadows": check_shadows,
    "BatchNorm": check_batchnorm,
    "Schedules": check_schedules,
    "Ensembles": check_ensembles,
    "Export": check_export,
    "What it costs": check_cost,
}


@pytest.mark.parametrize("title", TITLES)
def test_recipes_run(title):
    CHECKS[title](run(title))


def test_the_start_page_runs():
    names = {"model": network(), "train": train}
    exec(sections("index.md")["wat-kernels"][0], names)
    assert isinstance(names["model"][0], watnn.WATConv2d) and not names["model"].training


def test_the_concept_s_numbers():
    names = {}
    (snippet,) = sections("concept.md")["What a draw is"]
    exec(snippet, names)
    table = names["table"]
    assert table.maps.shape == (9, 9, 9) and float(table.probabilities.sum()) == pytest.approx(1)
    assert sorted(set(table.active_taps.tolist())) == [4, 6, 9]
