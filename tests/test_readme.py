"""What the README says can be typed works when typed."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
import watnn
from torch import nn
from watnn.transforms import WAT

from benchmarks.readme import stale

README = Path(__file__).parent.parent.joinpath("README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_equivalent_is_equivalent():
    conv, x, gain = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 6, 6), 1.5
    layer = watnn.WATConv2d.from_module(conv, transform=WAT(), gain="layer")
    nn.init.constant_(layer.gain, gain)
    for key in range(10):
        names = {
            "F": F,
            "conv": conv,
            "x": x,
            "gain": gain,
            "transform": lambda _, key=key: watnn.shadow_weight(layer, key),
        }
        exec(BLOCKS[0], names)
        with watnn.dom(layer, key=key):
            torch.testing.assert_close(layer(x), names["y"])


def test_the_tour_runs():
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3)), torch.randn(2, 3, 8, 8)
    names = {"model": model, "x": x, "train": lambda m: m(x).square().sum().backward()}
    exec(BLOCKS[1], names)
    assert not any(isinstance(module, watnn.WATConv2d) for module in names["model"].modules())


def test_the_recalibration_runs():
    model = watnn.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), WAT())
    x = torch.randn(8, 3, 6, 6)
    exec(BLOCKS[2], {"watnn": watnn, "torch": torch, "model": model, "loader": [x]})
    torch.testing.assert_close(model[1].running_mean, F.conv2d(x, model[0].weight, model[0].bias).mean((0, 2, 3)))


def test_the_schedule_and_the_ensemble_run():
    model, x = (
        watnn.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 4)), WAT()),
        torch.randn(2, 3, 4, 4),
    )
    names = {"watnn": watnn, "model": model, "x": x, "train": lambda m: m(x).sum().backward()}
    exec(BLOCKS[3], names)
    torch.testing.assert_close(names["mean"].sum(1), torch.ones(2))
    assert names["std"].max() > 0 and names["schedule"].get_last_strength() == 0.0


def test_the_training_script_runs():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), torch.randn(2, 3, 8, 8)
    before = model[0].weight.detach().clone()
    names = {"watnn": watnn, "torch": torch, "WAT": WAT, "model": model, "x": x}
    exec(BLOCKS[4], names)
    assert not torch.equal(names["model"][0].weight, before) and names["loss"].dtype == torch.bfloat16


def test_every_environment_variable_is_named_in_both_places():
    from watnn.info import _ENVIRONMENT

    assert all(f"`{name}" in README for name in _ENVIRONMENT if name.startswith("WAT_"))


def test_every_transform_is_named():
    for name in watnn.transforms.__all__:
        if name not in ("functional", "Transform", "GridTransform", "ElementwiseNoise"):
            assert f"`{name}`" in README, name


def test_costs_are_what_was_measured():
    """What stands between the marks of benchmarks is what benchmarks/results says; `python -m benchmarks.readme`."""
    assert stale(Path(__file__).parent.parent) == []


def test_pictures_and_folders_exist():
    root = Path(__file__).parent.parent
    for path in re.findall(r"\]\((docs/[^)]+)\)", README):
        assert root.joinpath(path).is_file(), path
