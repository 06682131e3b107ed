"""What a trained model can do: accuracy in AOM and in DOM, clean and corrupted, and that an exported DOM is the same.

Everything is measured on exported models, plain torch modules, as a user would deploy them. BatchNorm's running
statistics are an average over the draws of the training, and so belong to no single weight, PW or SW. A deployed model
gets them estimated again, in one pass over the training images (as in stochastic weight averaging); the plain one too.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import watnn
from watnn.demo.digits import Digits, Images
from watnn.demo.settings import Settings

# accuracies in per cent: name of the metric -> its row in the table
METRICS = {
    "aom": "AOM",
    "dom": "DOM",
    "aom_as_trained": "AOM, BatchNorm as trained",
    "dom_as_trained": "DOM, BatchNorm as trained",
    "aom_noise": "AOM, noise",
    "aom_blur": "AOM, blur",
    "aom_shift": "AOM, shift",
}


def evaluate(
    model: nn.Module, digits: Digits, corrupted: dict[str, Images], settings: Settings, seed: int
) -> dict[str, float | None]:
    """METRICS of one trained model; None where a plain model has no DOM."""
    aom = deployed(model, "aom", digits.train)
    measured: dict[str, float | None] = {
        "aom": accuracy(aom, digits.test),
        "aom_as_trained": accuracy(watnn.export(model, "aom"), digits.test),
        **{f"aom_{name}": accuracy(aom, images) for name, images in corrupted.items()},
    }
    if has_shadow(model):
        keys = dom_keys(settings, seed)
        fixed = [accuracy(deployed(model, "dom", digits.train, key), digits.test) for key in keys]
        trained = [accuracy(watnn.export(model, "dom", key), digits.test) for key in keys]
        measured |= {"dom": sum(fixed) / len(keys), "dom_as_trained": sum(trained) / len(keys)}
    return {name: measured.get(name) for name in METRICS}


def deployed(model: nn.Module, mode: str, train: Images, key: int | None = None) -> nn.Module:
    """`model` exported in `mode`, its BatchNorm statistics those of `train` under that weight."""
    exported = watnn.export(model, mode, key)
    update_bn([train.x.contiguous(memory_format=torch.channels_last)], exported)
    return exported


def accuracy(model: nn.Module, images: Images) -> float:
    """Per cent of `images` that `model`, in eval(), gets right."""
    with torch.no_grad():
        right = model(images.x.contiguous(memory_format=torch.channels_last)).argmax(1) == images.y
    return 100 * float(right.double().mean())


def export_difference(model: nn.Module, images: Images, key: int) -> float:
    """Largest difference between the outputs of dom(key) and of the exported DOM model, over the largest output."""
    exported = watnn.export(model, "dom", key)
    training = model.training
    with torch.no_grad(), watnn.dom(model.eval(), key):
        expected = model(images.x)
    model.train(training)
    with torch.no_grad():
        return float((exported(images.x) - expected).abs().max() / expected.abs().max())


def dom_keys(settings: Settings, seed: int) -> list[int]:
    """Keys of fresh draws, other ones for each seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**62, (settings.draws,), generator=generator).tolist()


def has_shadow(model: nn.Module) -> bool:
    return any(isinstance(module, watnn.WATConv2d | watnn.WATLinear) for module in model.modules())
