"""The Lightning callback, in `lightning` and in `pytorch_lightning`."""

import importlib
import sys

import pytest
import torch
import torch.nn.functional as F
import watnn
from torch import nn
from watnn.layers import shadow_layers
from watnn.transforms import WAT, DropConnect, RandomAffine

pytest.importorskip("lightning.pytorch")

import lightning.pytorch as pl
from watnn.integrations.lightning import WATCallback

GENERATOR = torch.Generator().manual_seed(5)
LABELS = torch.arange(64) % 2
IMAGES = torch.randn(64, 1, 8, 8, generator=GENERATOR)
IMAGES[1::2, :, :, :4] += 2
TRANSLATE = RandomAffine(degrees=0, translate=(0.3, 0.3))


def batches():
    """With a generator of its own: a loader draws a seed even where it does not shuffle."""
    data = torch.utils.data.TensorDataset(IMAGES, LABELS)
    return torch.utils.data.DataLoader(data, batch_size=16, generator=torch.Generator())


def module_for(framework):
    class Classifier(framework.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
                nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
                nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 2),
            )  # fmt: skip
            self.seen = []  # (stage, did it draw?) of every forward but those of update_bn

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.seen.append(("train", self.net[0].computes_shadow))
            return loss

        def validation_step(self, batch, index):
            self.seen.append(("validate", self.net[0].computes_shadow))
            self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

        def test_step(self, batch, index):
            self.seen.append(("test", self.net[0].computes_shadow))
            self.log("test_loss", F.cross_entropy(self(batch[0]), batch[1]))

        def predict_step(self, batch, index):
            self.seen.append(("predict", self.net[0].computes_shadow))
            return self(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    torch.manual_seed(0)
    return Classifier()


def trainer_for(framework, callback, **arguments):
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 3}
    return framework.Trainer(
        callbacks=[callback], enable_progress_bar=False, enable_model_summary=False, **{**settings, **arguments}
    )


def run(callback, module=None, **arguments):
    module = module_for(pl) if module is None else module
    trainer = trainer_for(pl, callback, **arguments)
    trainer.fit(module, batches(), batches())
    return module, trainer


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_converts_before_the_optimizer_is_made_and_validates_in_aom(package):
    framework = pytest.importorskip(package)
    callback = importlib.import_module("watnn.integrations." + package.removesuffix(".pytorch")).WATCallback
    module = module_for(framework)
    trainer = trainer_for(framework, callback(WAT(), gain="layer"), max_epochs=2)
    trainer.fit(module, batches(), batches())
    assert [type(layer) for _, layer in shadow_layers(module)] == [watnn.WATConv2d] * 2
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in module.parameters()} and any(
        p is module.net[0].gain for p in module.parameters()
    )
    assert set(module.seen) == {("train", True), ("validate", False)}
    trainer.test(module, batches(), verbose=False)
    trainer.predict(module, batches())
    assert set(module.seen[-8:]) == {("test", False), ("predict", False)}
    assert all(layer.mode == "auto" for _, layer in shadow_layers(module))


def test_training_goes_as_without_lightning():
    """The same draws, the same weights, as a loop written by hand."""
    module = module_for(pl)
    torch.manual_seed(9)
    run(WATCallback(WAT()), module, max_epochs=1)
    by_hand = watnn.convert(module_for(pl), WAT())
    optimizer = by_hand.configure_optimizers()
    torch.manual_seed(9)
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(by_hand(x), y).backward()
        optimizer.step()
    for ours, right in zip(module.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, right)


def test_dom_validates_with_the_shadow_of_the_key():
    module, trainer = run(WATCallback(DropConnect(0.5), mode="dom", key=11), max_epochs=1)
    assert set(module.seen) == {("train", True), ("validate", True)}
    (found,) = trainer.validate(module, batches(), verbose=False)
    with watnn.dom(module.eval(), key=11), torch.no_grad():
        expected = torch.stack([F.cross_entropy(module(x), y) for x, y in batches()]).mean()
    assert found["val_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert all(layer.mode == "auto" for _, layer in shadow_layers(module))


def statistics_error(module):
    """How far the first BatchNorm's mean is from that of the plain convolution's output, in standard deviations."""
    with torch.no_grad():
        y = F.conv2d(IMAGES, module.net[0].weight, module.net[0].bias, padding=1)
    return float(((module.net[1].running_mean - y.mean((0, 2, 3))) / y.std((0, 2, 3))).abs().mean())


def test_batchnorm_is_estimated_anew_before_evaluation_and_at_the_end():
    errors = {}

    class Watch(pl.Callback):
        def __init__(self, name):
            self.name = name

        def on_validation_batch_start(self, trainer, pl_module, *rest):
            errors[self.name] = statistics_error(pl_module)

    for name, loader in (("without", None), ("with", batches())):
        callbacks = [WATCallback(TRANSLATE, bn_loader=loader), Watch(name)]
        module = module_for(pl)
        trainer = trainer_for(pl, callbacks[0])
        trainer.callbacks.insert(1, callbacks[1])
        trainer.fit(module, batches(), batches())
        errors[name, "end"] = statistics_error(module)
        assert not any(buffer.is_inference() for buffer in module.buffers())
        assert all(norm.momentum == 0.1 for norm in module.modules() if isinstance(norm, nn.BatchNorm2d))
    assert errors["with"] < 1e-5 and errors["with", "end"] < 1e-5
    assert errors["without"] > 0.02 and errors["without", "end"] > 0.02


def fading(module):
    return watnn.StrengthScheduler(module, "linear", steps=4)


def test_a_scheduler_steps_every_epoch_and_is_resumed(tmp_path):
    callback = WATCallback(WAT(), scheduler=fading, gain="channel")
    module, trainer = run(callback, max_epochs=2)
    assert callback._scheduler.last_epoch == 2
    assert float(trainer.callback_metrics["wat_strength"]) == 0.75  # of the second epoch
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    again = WATCallback(WAT(), scheduler=fading, gain="channel")
    fresh = module_for(pl)
    trainer = trainer_for(pl, again, max_epochs=2)
    trainer.fit(fresh, batches(), batches(), ckpt_path=tmp_path / "two.ckpt")  # nothing left to train
    assert again._scheduler.last_epoch == 2
    assert {layer.strength for _, layer in shadow_layers(fresh)} == {0.5}
    for ours, saved in zip(fresh.parameters(), module.parameters(), strict=True):
        assert torch.equal(ours, saved)
    trainer = trainer_for(pl, again, max_epochs=3)
    trainer.fit(fresh, batches(), batches(), ckpt_path=tmp_path / "two.ckpt")
    assert again._scheduler.last_epoch == 3 and float(trainer.callback_metrics["wat_strength"]) == 0.5


def test_a_checkpoint_goes_into_the_unconverted_module(tmp_path):
    module, trainer = run(WATCallback(WAT()), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    plain = module_for(pl)
    plain.load_state_dict(torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"], strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(IMAGES), module.eval()(IMAGES))


def test_an_exception_puts_the_modes_back():
    module = module_for(pl)

    def fail(*batch_and_index):
        raise KeyError

    module.validation_step = fail
    with pytest.raises(KeyError):
        run(WATCallback(DropConnect(0.5), mode="dom", key=1), module, max_epochs=1)
    assert all(layer.mode == "auto" for _, layer in shadow_layers(module))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "sw"}, "mode='sw'; accepted are 'aom' and 'dom'"),
        ({"key": 3}, "key=3 with mode='aom'"),
        ({"inplace": True}, "inplace is not an option here"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        WATCallback(WAT(), **arguments)


@pytest.mark.parametrize("package", ["lightning", "pytorch_lightning"])
def test_a_missing_package_is_one_clear_line(package, monkeypatch):
    name = f"watnn.integrations.{package}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    for loaded in {
        package,
        *(module for module in sys.modules if module.split(".")[0] == package),
    }:  # or not yet loaded
        monkeypatch.setitem(sys.modules, loaded, None)
    with pytest.raises(ImportError, match=f"^{name} needs the package {package}: pip install [^\\n]*$"):
        importlib.import_module(name)
