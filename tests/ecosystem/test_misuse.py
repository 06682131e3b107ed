"""An optimizer that cannot know of the gain is pointed out, and only that one."""

import warnings

import pytest
import torch
import watnn
from torch import nn
from torch.func import functional_call
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


def test_parameters_that_no_optimizer_holds_are_not():
    """Tensors that are no leaves, and a weight under a parametrization."""
    layer = watnn.WATConv2d(3, 4, 3, transform=WAT(), gain="channel")
    leaves = {name: p.detach().requires_grad_() for name, p in layer.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            functional_call(layer, {name: 2 * p for name, p in leaves.items()}, (X,)).square().mean().backward()
        nn.utils.parametrizations.weight_norm(layer)
        steps(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    assert all(p.grad is not None for p in leaves.values())
