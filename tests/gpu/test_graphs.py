"""CUDA graphs, torch.compile and streams, for every kind of layer and backend: fresh draws at each replay, no host between."""

import contextlib
import itertools

import pytest
import torch
import torch.nn.functional as F
import watnn
from watnn.transforms import WAT

from tests.gpu.kinds import KINDS, TRITON_KINDS
from wat_kernels import Noise, draw_key, shadow_linear

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
CLOSE = {"atol": 1e-3, "rtol": 1e-3}


def measuring():
    """A block in which Triton's configurations are chosen as for users: measured, and not while a graph is captured."""
    try:
        from wat_kernels.triton_launch import choosing
    except ImportError:
        return contextlib.nullcontext()
    return choosing(None)


def results(kind, x, weight, key, backend=None):
    """y, and the gradients of x and weight for a dy of ones."""
    leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
    y = kind(*leaves, key, backend)
    return y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))


def agree(found, kind, x, weight, key):
    for one, right in zip(found, results(kind, x, weight, key, "reference"), strict=True):
        scale = max(1.0, float(right.abs().max()))
        torch.testing.assert_close(one / scale, right / scale, **CLOSE)


def captured(step):
    """A graph of `step`, which has run on another stream before, and what it returned."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    return graph, found


@every_kind
def test_a_replayed_graph_draws_anew(kind):
    x, weight = kind.inputs()

    def step():
        key = draw_key("cuda")
        return key, *results(kind, x, weight, key)

    graph, (key, *found) = captured(step)
    keys, outputs = set(), []
    for _ in range(10):
        graph.replay()
        agree(found, kind, x, weight, int(key))
        keys.add(int(key))
        outputs.append(found[0].clone())
    assert len(keys) == 10
    assert sum(not torch.equal(outputs[0], other) for other in outputs[1:]) == 9  # noise: no two draws are alike


@every_kind
def test_a_replayed_training_step_of_a_module(kind):
    layer, (x, _) = kind.layer(), kind.inputs()
    optimizer = torch.optim.SGD(layer.parameters())

    def step():
        optimizer.zero_grad(set_to_none=False)
        y = layer(x)
        y.square().sum().backward()
        return y

    graph, y = captured(step)
    seen = []
    for _ in range(5):
        graph.replay()
        bias = y.detach().sum([d for d in range(y.ndim) if d != 1]) * 2  # of sum(y ** 2): from this replay's y
        torch.testing.assert_close(layer.bias.grad, bias, atol=1e-2, rtol=1e-3)
        seen.append((y.detach().clone(), layer.weight.grad.clone()))
    for one, other in itertools.pairwise(seen):
        assert all(
            tensor.isfinite().all() and not torch.equal(tensor, next_) for tensor, next_ in zip(one, other, strict=True)
        )


@every_kind
def test_a_problem_first_met_in_a_capture_is_right(kind):
    """Nothing can be measured there. The kernels may have to be compiled and loaded, which allocates."""
    x, weight = kind.inputs(channels=24, size=7, rows=3)
    key = torch.tensor(5, device="cuda")
    results(kind, *kind.inputs(channels=16, size=6, rows=2), key)  # loads what does not depend on the problem
    with measuring():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = results(kind, x, weight, key)
        for value in (5, 6, 7):
            key.fill_(value)
            graph.replay()
            agree(found, kind, x, weight, value)


@pytest.mark.parametrize("kind", TRITON_KINDS, ids=str)
def test_tuning_and_what_it_chooses(kind):
    """The one test that measures configurations: all of them run before the first call, which must be as right as later ones."""
    from wat_kernels.triton_launch import chosen

    with measuring():
        x, weight = kind.inputs(channels=32, size=6)
        before = len(chosen())
        first = results(kind, x, weight, 3)
        assert len(chosen()) == before + 3  # forward, data gradient, weight gradient
        again = results(kind, x, weight, 3)
        assert len(chosen()) == before + 3
        agree(first, kind, x, weight, 3)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@every_kind
def test_compiled_training_follows_the_eager_one(kind, mode):
    def new():
        torch.manual_seed(0)
        pooled = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()] if kind.kind != "linear" else []
        model = torch.nn.Sequential(kind.layer(), torch.nn.ReLU(), *pooled, torch.nn.Linear(16, 4, device="cuda"))
        return model, torch.optim.SGD(model.parameters(), lr=0.02)

    (x, _), target = kind.inputs(rows=32), torch.randint(4, (32,), device="cuda")
    losses = []
    for compiled in (False, True):
        model, optimizer = new()
        run = torch.compile(model, fullgraph=True, mode=mode) if compiled else model
        torch.manual_seed(1)
        line = []
        for _ in range(6):
            torch.compiler.cudagraph_mark_step_begin()
            loss = F.cross_entropy(run(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            line.append(float(loss.detach()))
        losses.append(line)
    eager, compiled = losses
    assert len(set(eager)) == 6
    if mode == "default":  # the same seed draws the same keys; a recorded graph has a generator state of its own
        torch.testing.assert_close(torch.tensor(compiled), torch.tensor(eager), atol=2e-3, rtol=2e-3)
    else:
        assert compiled[-1] < compiled[0] + 0.5 and len(set(compiled)) == 6


@every_kind
def test_two_streams_at_once(kind):
    """The counters and parts of a reduction that is cut belong to one launch."""
    x, _ = kind.inputs(channels=32, size=14, rows=32)
    weights = [kind.inputs(channels=32)[1] for _ in range(2)]
    right = [results(kind, x, weight, 3) for weight in weights]
    for of_one, weight in zip(right, weights, strict=True):
        agree(of_one, kind, x, weight, 3)
    streams = [torch.cuda.Stream() for _ in weights]
    torch.cuda.synchronize()
    for _ in range(30):
        found = []
        for stream, weight in zip(streams, weights, strict=True):
            with torch.cuda.stream(stream):
                found.append(results(kind, x, weight, 3))
        torch.cuda.synchronize()
        for of_one, of_right in zip(found, right, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(of_one, of_right, strict=True))


@every_kind
def test_repeat_runs_are_equal_bit_for_bit(kind):
    x, weight = kind.inputs(channels=32, size=14, rows=48)
    first = results(kind, x, weight, 9)
    for _ in range(4):
        assert all(torch.equal(one, other) for one, other in zip(results(kind, x, weight, 9), first, strict=True))


@every_kind
def test_a_layer_never_waits_for_the_gpu(kind):
    """Under the strictest setting torch raises where the host would wait."""
    layer, (x, _) = kind.layer(), kind.inputs()
    x.requires_grad_()
    layer(x).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_autocast_equals_nn_conv2d_in_dtype():
    x = torch.randn(2, 8, 6, 6, device="cuda")
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype):
            y = watnn.WATConv2d(8, 8, 3, transform=WAT()).cuda()(x)
            z = shadow_linear(x.mean((2, 3)), torch.randn(4, 8, device="cuda"), key=1, noise=Noise("dropconnect", 0.2))
        assert y.dtype == z.dtype == dtype
