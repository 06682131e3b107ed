"""EMA and SWA of models with shadow layers, and BatchNorm statistics for the weights in use."""

import pytest
import torch
import torch.nn.functional as F
import watnn
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn
from watnn.transforms import WAT, RandomAffine

GENERATOR = torch.Generator().manual_seed(5)
IMAGES = torch.randn(96, 1, 8, 8, generator=GENERATOR)
IMAGES[::3, :, :, :4] += 1.5  # three kinds of images: bright to the left, bright below, and neither
IMAGES[1::3, :, 4:] += 1.5
IMAGES = 3 * IMAGES + 5  # not normalized: the statistics that BatchNorm starts with are wrong
LABELS = torch.arange(96) % 3
TRANSLATE = RandomAffine(degrees=0, translate=(0.3, 0.3))
LOADER = [(IMAGES[i : i + 32], LABELS[i : i + 32]) for i in range(0, 96, 32)]


def network(transform):
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    return watnn.convert(model, transform, gain="channel")


def train(model, average=None, steps=30):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = SWALR(optimizer, swa_lr=0.02, anneal_epochs=2)
    for step in range(steps):
        x, y = LOADER[step % 3]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if average is not None and step >= 10:
            average.update_parameters(model)
        schedule.step()


def test_swa_averages_plain_weights_and_gains():
    model, kept = network(WAT()), []
    average = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in LOADER:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        average.update_parameters(model)
        kept.append([p.detach().clone() for p in model.parameters()])
    for found, *values in zip(average.module.parameters(), *kept, strict=True):
        torch.testing.assert_close(found, torch.stack(values).mean(0))
    assert not torch.equal(average.module[3].weight, model[3].weight)
    assert isinstance(average.module[0], watnn.WATConv2d) and average.module[0].transform == model[0].transform


def activations(model):
    """Mean and variance, over images and places, of what the second BatchNorm receives."""
    seen = []
    handle = model[4].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(IMAGES)
    handle.remove()
    return seen[0].mean((0, 2, 3)), seen[0].var((0, 2, 3))


def loss(model):
    with torch.no_grad():
        return F.cross_entropy(model(IMAGES), LABELS)


def distance(model):
    """How far the second BatchNorm's statistics are from what it receives, in standard deviations."""
    mean, variance = activations(model)
    return ((model[4].running_mean - mean) / variance.sqrt()).abs().mean() + (
        model[4].running_var / variance
    ).log().abs().mean()


def test_recalibration_moves_statistics_from_shadow_to_plain_weights():
    """Training gathers statistics over shadow weights, of which translation leaves 73 % of the taps."""
    model = network(TRANSLATE)
    train(model)
    model.eval()
    before = distance(model)
    with watnn.aom(model):
        update_bn(LOADER, model)
    after = distance(model)
    assert before > 0.3 and after < 0.05
    with watnn.dom(model, key=3):  # one shadow weight has statistics of its own
        shadowed = distance(model)
        update_bn(LOADER, model)
        assert shadowed > 0.1 and distance(model) < 0.05


@pytest.mark.parametrize("kind", ["swa", "ema"])
def test_update_bn_in_aom_makes_the_averaged_model_right(kind):
    """The averaged model has the statistics of the last trained one, over shadow weights; it computes with others."""
    model = network(TRANSLATE)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9) if kind == "ema" else None)
    train(model, average)
    average.eval()
    before = distance(average.module), loss(average)
    with watnn.aom(average):
        update_bn(LOADER, average)
    after = distance(average.module), loss(average)
    assert before[0] > 0.3 and after[0] < 0.05
    assert after[1] < 0.7 * before[1]
    first = average.module[0]
    conv = F.conv2d(IMAGES, first.gain.view(-1, 1, 1, 1) * first.weight, first.bias, padding=1)
    torch.testing.assert_close(average.module[1].running_mean, conv.mean((0, 2, 3)))
    per_batch = torch.stack([part.var((0, 2, 3)) for part in conv.split(32)]).mean(0)
    torch.testing.assert_close(average.module[1].running_var, per_batch)
    assert all(layer.mode == "auto" for _, layer in watnn.layers.shadow_layers(average))
