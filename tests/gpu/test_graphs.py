"""CUDA graphs, torch.compile, streams: fresh draws at each replay, no host in between."""

import pytest
import torch
import torch.nn.functional as F
import watnn
from watnn.transforms import WAT, DropConnect

from tests.gpu.gpu_backends import DENSE, fused
from wat_kernels import Noise, shadow_conv2d, shadow_linear

CONV_BACKENDS = fused("shadow_conv2d", DENSE)


def convolved(layer, x, row, weight):
    """conv(x, SW) for one row of the layer's table."""
    shadow = torch.einsum("tp,oip->oit", layer.tap_table.maps[row].to(x), weight.flatten(2)).view_as(weight)
    return F.conv2d(x, shadow, padding=1)


@pytest.mark.parametrize("backend", CONV_BACKENDS)
def test_a_replayed_graph_draws_anew(backend):
    layer = watnn.WATConv2d(16, 16, 3, padding=1, bias=False, transform=WAT(), backend=backend).cuda()
    x = torch.randn(4, 16, 8, 8, device="cuda")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)

    def step():
        optimizer.zero_grad(set_to_none=False)
        y = layer(x)
        y.square().sum().backward()
        return y

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step()
    rows = range(len(layer.tap_table))
    right = [convolved(layer, x, row, layer.weight.detach()) for row in rows]
    seen = set()
    for _ in range(40):
        graph.replay()
        row = min(rows, key=lambda row: float((y.detach() - right[row]).abs().max()))
        torch.testing.assert_close(y, right[row], atol=1e-3, rtol=1e-3)
        weight = layer.weight.detach().clone().requires_grad_()
        (grad,) = torch.autograd.grad(convolved(layer, x, row, weight).square().sum(), weight)
        torch.testing.assert_close(layer.weight.grad, grad, atol=1e-2, rtol=1e-3)
        seen.add(row)
    assert len(seen) >= 4


@pytest.mark.parametrize("backend", CONV_BACKENDS)
def test_a_problem_first_met_in_a_capture_is_right(backend):
    """Nothing can be measured there: the first configuration that suits runs."""
    table = WAT().tap_table(3)
    x, weight = torch.randn(3, 24, 7, 9, device="cuda"), torch.randn(40, 24, 3, 3, device="cuda")
    key = torch.tensor(5, device="cuda")
    shadow_conv2d(x[:1], weight, table=table, key=key, padding=1, backend=backend)  # loads and compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = shadow_conv2d(x, weight, table=table, key=key, padding=1, backend=backend)
    for value in (5, 6, 7):
        key.fill_(value)
        graph.replay()
        right = shadow_conv2d(x, weight, table=table, key=value, padding=1, backend="reference")
        torch.testing.assert_close(y, right, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("backend", CONV_BACKENDS)
def test_compiled_training_follows_the_eager_one(backend, mode):
    def new():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            watnn.WATConv2d(8, 16, 3, padding=1, transform=WAT(), backend=backend),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            watnn.WATLinear(16, 4, transform=DropConnect(0.2), backend=backend),
        ).cuda()
        return model, torch.optim.SGD(model.parameters(), lr=0.05)

    x, target = torch.randn(32, 8, 12, 12, device="cuda"), torch.randint(4, (32,), device="cuda")
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
            line.append(float(loss))
        losses.append(line)
    eager, compiled = losses
    assert len(set(eager)) == 6
    if mode == "default":  # the same seed draws the same keys; a recorded graph has a generator state of its own
        torch.testing.assert_close(torch.tensor(compiled), torch.tensor(eager), atol=2e-3, rtol=2e-3)
    else:
        assert compiled[-1] < compiled[0] + 0.5 and len(set(compiled)) == 6


@pytest.mark.parametrize("backend", CONV_BACKENDS)
def test_two_streams_at_once(backend):
    """The counters of a reduction that is cut into parts belong to one stream."""
    table, noise = WAT().tap_table(3), Noise("multiplicative", 0.1)
    x = torch.randn(8, 32, 14, 14, device="cuda").to(memory_format=torch.channels_last)
    weights = [torch.randn(32, 32, 3, 3, device="cuda", requires_grad=True) for _ in range(2)]

    def gradient(weight):
        y = shadow_conv2d(x, weight, table=table, key=3, noise=noise, padding=1, backend=backend)
        return torch.autograd.grad(y, weight, torch.ones_like(y))[0]

    right = [gradient(weight) for weight in weights]
    streams = [torch.cuda.Stream() for _ in weights]
    torch.cuda.synchronize()
    for _ in range(50):
        found = []
        for stream, weight in zip(streams, weights, strict=True):
            with torch.cuda.stream(stream):
                found.append(gradient(weight))
        torch.cuda.synchronize()
        for one, other in zip(found, right, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("backend", CONV_BACKENDS)
def test_a_layer_never_waits_for_the_gpu(backend):
    """Under the strictest setting torch raises where the host would wait."""
    conv = watnn.WATConv2d(8, 8, 3, transform=WAT(), backend=backend).cuda()
    linear = watnn.WATLinear(8, 4, transform=DropConnect(0.2), backend=backend).cuda()
    x = torch.randn(2, 8, 6, 6, device="cuda")

    def run():
        linear(conv(x).mean((2, 3))).sum().backward()

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_autocast_equals_nn_conv2d_in_dtype():
    x = torch.randn(2, 8, 6, 6, device="cuda")
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype):
            y = watnn.WATConv2d(8, 8, 3, transform=WAT()).cuda()(x)
            z = shadow_linear(x.mean((2, 3)), torch.randn(4, 8, device="cuda"), key=1, noise=Noise("dropconnect", 0.2))
        assert y.dtype == z.dtype == dtype
