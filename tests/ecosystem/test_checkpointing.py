"""Runs that are interrupted and forwards that are run again give the same numbers; chunks are micro-batches."""

import copy
import runpy
from pathlib import Path

import pytest
import torch
import watnn
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from watnn.transforms import WAT, Compose, DropConnect, MultiplicativeNoise

EXAMPLE = Path(__file__).parents[2] / "examples/train_resume.py"


def network(**arguments):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6, padding=1), nn.Flatten()
    )
    model = watnn.convert(model, Compose([WAT(), DropConnect(0.2)]), gain="channel", **arguments)
    head = watnn.WATLinear(6 * 64, 5, transform=MultiplicativeNoise(0.2), gain="layer", **arguments)
    return model.append(nn.Dropout(0.3)).append(head)


@pytest.mark.parametrize("synced", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("backend", ["auto", "library", "reference"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_draws_the_same_again(use_reentrant, backend, autocast, synced):
    model = network(backend=backend, shadows=2)
    inputs = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    results = []
    for run in (
        model,
        lambda x: checkpoint(model, x, use_reentrant=use_reentrant),
        lambda x: checkpoint_sequential(model, 3, x, use_reentrant=use_reentrant),
    ):
        model.zero_grad()
        torch.manual_seed(4)
        if synced:
            watnn.sync_draws(model, key=8)
        given = [x.clone().requires_grad_() for x in inputs]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            outputs = [run(x) for x in given]  # two forwards before one backward
        (outputs[0].float().square().sum() + outputs[1].float().square().sum()).backward()
        results.append([*outputs, *(x.grad for x in given), *(p.grad.clone() for p in model.parameters())])
    assert not torch.equal(*results[0][:2])
    for again in results[1:]:
        for plain, checkpointed in zip(results[0], again, strict=True):
            assert torch.equal(plain, checkpointed)


def micro_batch(layer, x, key, shadow):
    """`layer` on one chunk with the SW that chunk `shadow` of a batch has, as a layer without shadows."""
    weights = watnn.shadow_weight(layer, key)
    with watnn.aom(layer):
        return functional_call(layer, {"weight": weights[shadow]}, (x,))


@pytest.mark.parametrize("gain", [None, "layer", "channel"])
@pytest.mark.parametrize("backend", ["auto", "library", "reference"])
def test_chunks_of_a_batch_are_accumulated_micro_batches(backend, gain):
    """S shadows of one batch give the outputs and the gradient of S micro-batches, each with its own draw."""
    shadows, key = 4, 11
    layer = watnn.WATConv2d(3, 5, 3, transform=Compose([WAT(), DropConnect(0.2)]), gain=gain, shadows=shadows)
    layer.backend = backend
    if gain:
        nn.init.uniform_(layer.gain, 0.5, 2)
    x = torch.randn(8, 3, 7, 7)
    with watnn.dom(layer, key=key):
        whole = layer(x)
    whole.square().mean().backward()
    gradients = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    parts = []
    for shadow, chunk in enumerate(x.chunk(shadows)):
        parts.append(micro_batch(layer, chunk, key, shadow))
        (parts[-1].square().mean() / shadows).backward()  # a mean over the batch is the mean of the chunks' means
    torch.testing.assert_close(whole, torch.cat(parts))
    for p, together in zip(layer.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, together)
    assert not torch.allclose(micro_batch(layer, x[:2], key, 0), micro_batch(layer, x[:2], key, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(dtype, tmp_path):
    train = runpy.run_path(str(EXAMPLE))["train"]
    whole = train(6, tmp_path / "whole.pt", dtype=dtype).state_dict()
    train(3, tmp_path / "parts.pt", dtype=dtype)
    torch.manual_seed(99)
    torch.rand(7)  # another process would be elsewhere
    resumed = train(6, tmp_path / "parts.pt", dtype=dtype).state_dict()
    assert list(whole) == list(resumed)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    other = train(5, tmp_path / "other.pt", dtype=dtype).state_dict()
    assert not torch.equal(whole["0.weight"], other["0.weight"])


def test_synced_draws_resume_at_any_step():
    """The key of a step is all the state there is, so nothing has to be saved for it."""
    start, x = network(), torch.randn(4, 3, 8, 8)
    states = []
    for interrupted in (False, True):
        model = copy.deepcopy(start)
        for step in range(4):
            if interrupted and step == 2:
                state = model.state_dict()
                model = network()
                model.load_state_dict(state)
            watnn.sync_draws(model, key=step)
            torch.manual_seed(step)  # the dropout of this network
            model(x).square().mean().backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.01 * p.grad
                    p.grad = None
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_example_of_resuming_learns(tmp_path):
    model = runpy.run_path(str(EXAMPLE))["train"](20, tmp_path / "checkpoint.pt").eval()
    x, label = torch.randn(64, 1, 8, 8), torch.arange(64) % 2
    x[label == 1, :, :, 4:] += 1
    assert nn.functional.cross_entropy(model(x), label) < 0.3
