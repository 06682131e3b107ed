"""torch.compile: one graph a mode, whatever is drawn and however large the batch, with the numbers of eager."""

import pytest
import torch
import watnn
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint
from watnn.transforms import WAT, Compose, DropConnect, MultiplicativeNoise, RandomAffine

TRANSFORM = Compose([RandomAffine(0, translate=(0.3, 0.3)), DropConnect(0.2)])
LAYERS = {
    "conv2d": (lambda **kw: watnn.WATConv2d(4, 6, 3, padding=1, transform=TRANSFORM, **kw), (4, 7, 6)),
    "depthwise": (lambda **kw: watnn.WATConv2d(4, 4, 3, groups=4, transform=WAT(), **kw), (4, 7, 6)),
    "conv1d": (lambda **kw: watnn.WATConv1d(4, 6, 5, stride=2, transform=TRANSFORM, **kw), (4, 11)),
    "linear": (lambda **kw: watnn.WATLinear(6, 5, transform=MultiplicativeNoise(0.2), **kw), (6,)),
}


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network(**arguments):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )
    model = watnn.convert(model.append(nn.Linear(32, 5)), WAT(), gain="channel", **arguments)
    return watnn.convert(model, DropConnect(0.3), include=nn.Linear, gain="layer", **arguments)


def counted(model, backend="aot_eager", **arguments):
    """The compiled model, and a counter of the graphs that were made for it. A graph break is an error."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(model, fullgraph=True, backend=counter, **arguments), counter


def step(model, run, x, seed):
    """Output, gradients and buffers of one training step from `seed`."""
    torch.manual_seed(seed)
    buffers = [buffer.clone() for buffer in model.buffers()]
    x = x.clone().requires_grad_()
    y = run(x)
    results = [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]
    results += [buffer.clone() for buffer in model.buffers()]
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return results


def assert_same_steps(model, compiled, inputs, **tolerance):
    for seed, x in enumerate(inputs):
        for ours, eager in zip(step(model, compiled, x, seed), step(model, model, x, seed), strict=True):
            torch.testing.assert_close(ours, eager, **tolerance)


@pytest.mark.parametrize(("backend", "shadows"), [("auto", 1), ("auto", 2), ("library", 2)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_one_graph_for_every_draw_and_batch(name, backend, shadows):
    build, shape = LAYERS[name]
    layer = build(backend=backend, shadows=shadows, gain="channel")
    compiled, counter = counted(layer)
    inputs = [torch.randn(batch, *shape) for batch in (4, 6, 8, 4)]
    for x in inputs:
        torch._dynamo.mark_dynamic(x, 0)
    assert_same_steps(layer, lambda x: compiled(marked(x)), inputs)
    assert counter.frame_count == 1


def marked(x):
    torch._dynamo.mark_dynamic(x, 0)  # a clone has lost the mark
    return x


@pytest.mark.parametrize("backend", ["auto", "library"])
def test_a_model_with_batchnorm_is_one_graph_for_every_draw_and_batch(backend):
    model = network(backend=backend)
    compiled, counter = counted(model)
    assert_same_steps(model, lambda x: compiled(marked(x)), [torch.randn(n, 3, 8, 8) for n in (4, 6, 10)])
    assert counter.frame_count == 1


def test_dynamic_true_makes_as_many_graphs_as_for_the_plain_model():
    made = []
    for model in (network(), watnn.revert(network())):
        torch._dynamo.reset()
        compiled, counter = counted(model, dynamic=True)
        for batch in (4, 6, 8):
            compiled(torch.randn(batch, 3, 8, 8))
        made.append(counter.frame_count)
    assert made[0] == made[1]


def test_every_mode_is_one_graph_and_no_key_is_another():
    model, x = network(), torch.randn(4, 3, 8, 8)
    compiled, counter = counted(model)

    def run_twice():
        for seed in range(2):
            outputs = []
            for run in (compiled, model):
                torch.manual_seed(seed)
                outputs.append(run(x))
            torch.testing.assert_close(*outputs)
        return counter.frame_count

    assert run_twice() == 1  # SW
    watnn.aom(model)
    assert run_twice() == 2  # PW
    watnn.dom(model, key=1)
    assert run_twice() == 3  # SW of a key
    for key in range(2, 12):  # more keys than torch recompiles for
        watnn.dom(model, key=key)
        assert run_twice() == 3
    watnn.auto(model)
    assert run_twice() == 3
    model.eval()
    assert run_twice() == 4  # PW, BatchNorm in eval()
    model.train()
    assert run_twice() == 4


def test_synced_draws_are_one_graph():
    model, x = network(), torch.randn(4, 3, 8, 8)
    compiled, counter = counted(model)
    for key in range(3):
        outputs = []
        for run in (compiled, model):
            with watnn.sync_draws(model, key=key):
                outputs.append([run(x), run(x)])
        torch.testing.assert_close(*outputs)
        assert not torch.allclose(*outputs[0])
    assert counter.frame_count == 1


def test_a_compiled_checkpoint_draws_the_same_again():
    model, x = network(), torch.randn(4, 3, 8, 8)
    compiled, counter = counted(lambda x: checkpoint(model, x, use_reentrant=False))
    model[1].momentum = 0.0  # BatchNorm counts a recomputation twice, compiled or not
    assert_same_steps(model, compiled, [x, x])
    assert counter.frame_count == 1


def test_a_compiled_checkpoint_repeats_synced_draws_or_says_that_it_cannot():
    model, x = network(), torch.randn(4, 3, 8, 8)
    model[1].momentum = 0.0
    compiled, _ = counted(lambda x: checkpoint(model, x, use_reentrant=False))
    gradients = []
    for run in (model, compiled):
        watnn.sync_draws(model, key=3)
        gradients.append(torch.autograd.grad(run(x).square().sum(), model.parameters()))
    torch.testing.assert_close(*gradients)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (compiled(x) + compiled(x)).sum().backward()  # the first would be recomputed after the second


def test_inductor_gives_the_numbers_of_eager():
    model = network()
    compiled = torch.compile(model, fullgraph=True)
    assert_same_steps(model, compiled, [torch.randn(4, 3, 8, 8) for _ in range(3)], atol=1e-4, rtol=1e-4)
    model.eval()
    with torch.no_grad():
        x = torch.randn(4, 3, 8, 8)
        torch.testing.assert_close(compiled(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(("backend", "shadows"), [("auto", 1), ("auto", 2), ("library", 2), ("reference", 2)])
@pytest.mark.parametrize("name", LAYERS)
def test_inductor_gives_the_numbers_of_eager_for_every_layer(name, backend, shadows):
    build, shape = LAYERS[name]
    layer = build(backend=backend, shadows=shadows, gain="channel")
    compiled, counter = counted(layer, backend="inductor")
    inputs = [torch.randn(batch, *shape) for batch in (4, 6, 8)]
    assert_same_steps(layer, lambda x: compiled(marked(x)), inputs, atol=1e-4, rtol=1e-4)
    watnn.dom(layer, key=3)
    assert_same_steps(layer, lambda x: compiled(marked(x)), inputs, atol=1e-4, rtol=1e-4)
    assert counter.frame_count == 2


@pytest.mark.long
def test_autocast_within_a_compiled_model():
    model, x = network(), torch.randn(4, 3, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_steps(model, compiled, [x, x])
