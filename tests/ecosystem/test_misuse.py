"""An optimizer that cannot know of the gain is pointed out, and only that one."""

import warnings

import pytest
import torch
import watnn
from torch import nn
from watnn.transforms import WAT

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def steps(model, optimizer, count=2):
    for _ in range(count):
        model(X).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_an_optimizer_from_before_the_gain_is_pointed_out():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watnn.convert(model, WAT(), gain="channel", inplace=True)
    with pytest.warns(UserWarning, match="was the optimizer built before the gain existed"):
        steps(model, optimizer)
    assert torch.equal(model[0].gain, torch.ones(4))


@pytest.mark.parametrize("trained", ["all", "gain only", "weight only", "accumulated"])
def test_other_optimizers_are_not(trained):
    model = watnn.convert(nn.Sequential(nn.Conv2d(3, 4, 3)), WAT(), gain="channel")
    if trained == "gain only":
        model[0].weight.requires_grad_(False)
    if trained == "weight only":
        model[0].gain.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            if trained == "accumulated":
                model(X).square().mean().backward()
            steps(model, optimizer)
