"""The snippets of docs/ecosystem.md run, one after the other, and give what the page says."""

import pytest
import torch
import torch.nn.functional as F
import watnn
from torch import nn

from tests.docs.snippets import sections

SECTIONS = sections("ecosystem.md")
PREAMBLE, *TITLES = SECTIONS


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


def train(model, after_each_step=lambda model: None):
    for _ in range(3):
        if isinstance(model, nn.Sequential):
            model(torch.randn(4, 3, 8, 8)).sum().backward()
        after_each_step(model)


DATA = torch.utils.data.TensorDataset(torch.randn(12, 3, 8, 8), torch.arange(12) % 3)
LOADER = torch.utils.data.DataLoader(DATA, batch_size=4)
X = DATA[:4][0]


def run(title, **names):
    names |= {"model": network(), "loader": LOADER, "train": train}
    for snippet in SECTIONS[PREAMBLE] + SECTIONS[title]:
        exec(snippet, names)
    return names


def check_in_torchs_place(names):
    assert type(names["layer"]) is watnn.WATConv2d and nn.Conv2d is not watnn.WATConv2d


def check_torch_func(names):
    assert names["outputs"].shape == (5, 4, 4, 6, 6)
    for key, y in enumerate(names["outputs"]):
        with watnn.dom(names["layer"], key=key):
            torch.testing.assert_close(y, names["layer"](names["x"]))
    assert names["gradients"]["7.weight"].shape == (4, 3, 64)


def check_parametrizations(names):
    x = X
    torch.testing.assert_close(names["exported"](x), names["model"].eval()(x), atol=1e-4, rtol=1e-4)
    assert type(names["model"][0]) is nn.Conv2d


def check_averaging(names):
    first = names["average"].module[0]
    means = torch.stack([F.conv2d(x, first.weight, first.bias).mean((0, 2, 3)) for x, _ in LOADER])
    torch.testing.assert_close(names["average"].module[1].running_mean, means.mean(0))


def check_fusing(names):
    x, model = X, names["model"]
    torch.testing.assert_close(names["fused"](x), model[:2](x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(names["whole"](x), model(x), atol=1e-5, rtol=1e-4)


def check_quantisation(names):
    with torch.no_grad():
        y, expected = names["exported"](X), names["model"].eval()(X)
    assert 0 < (y - expected).norm() < 0.03 * expected.norm()


def check_transformers(names):
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(names["plain"](x).logits, names["vit"].eval()(x).logits, atol=1e-5, rtol=1e-4)


def check_lightning(names):
    assert isinstance(names["module"].model[0], watnn.WATConv2d) and names["module"].model[0].gain is not None
    assert names["module"].model[0].strength == pytest.approx(0.95)  # after one of 20 epochs


CHECKS = {
    "In torch's place": check_in_torchs_place,
    "torch.func": check_torch_func,
    "Parametrizations": check_parametrizations,
    "Averaging, and BatchNorm": check_averaging,
    "Fusing BatchNorm": check_fusing,
    "Quantisation": check_quantisation,
    "transformers": check_transformers,
    "Lightning": check_lightning,
}


@pytest.mark.parametrize("title", TITLES)
def test_snippets_run(title, tmp_path):
    names = {}
    if title == "Quantisation":
        pytest.importorskip("torchao")
    elif title == "transformers":
        pytest.importorskip("transformers")
        names["folder"] = tmp_path
    elif title == "Lightning":
        names["module"] = lightning_module(pytest.importorskip("lightning.pytorch"))
    CHECKS[title](run(title, **names))


def lightning_module(pl):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network()

        def forward(self, x):
            return self.model(x)

        def training_step(self, batch, index):
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, index):
            self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()
