"""Autocast does to a shadow layer what it does to torch's: the dtypes of outputs and gradients, and what it refuses."""

import contextlib

import pytest
import torch
import watnn
from torch import nn
from watnn.transforms import Compose, Identity, MultiplicativeNoise, RandomRotation

LAYERS = {
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (4, 4, 7, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (4, 4, 7, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 5), (4, 4, 11)),
    "linear": (lambda: nn.Linear(4, 6), (4, 4)),
}
CASTS = {
    "off": (),
    "bf16": ({"dtype": torch.bfloat16},),
    "fp16": ({"dtype": torch.float16},),
    "off within bf16": ({"dtype": torch.bfloat16}, {"enabled": False}),
    "fp16 within bf16": ({"dtype": torch.bfloat16}, {"dtype": torch.float16}),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NO_CHANGE = Compose([Identity(), MultiplicativeNoise(0.0)])  # draws, and PW is what comes of it


@contextlib.contextmanager
def autocasts(cast):
    with contextlib.ExitStack() as stack:
        for arguments in CASTS[cast]:
            stack.enter_context(torch.autocast("cpu", **arguments))
        yield


def dtypes_of(module, x):
    """The dtypes of output and gradients, or the error."""
    try:
        y = module(x)
        y.float().sum().backward()
    except (TypeError, RuntimeError) as error:
        return error
    return y.dtype, x.grad.dtype, module.weight.grad.dtype, module.bias.grad.dtype


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("name", LAYERS)
def test_dtypes_are_those_of_the_torch_layer(name, cast):
    build, shape = LAYERS[name]
    for backend in ("auto", "library", "reference"):
        for weight_dtype in DTYPES:
            plain = build().to(weight_dtype)
            shadow = watnn.convert(
                plain, NO_CHANGE, gain="channel", backend=backend, include=type(plain), inplace=False
            )
            assert shadow.computes_shadow
            for x_dtype in DTYPES:
                x = torch.randn(shape).to(x_dtype)
                with autocasts(cast):
                    expected, found = (dtypes_of(m, x.clone().requires_grad_()) for m in (plain, shadow))
                if isinstance(expected, Exception):
                    assert isinstance(found, TypeError) and "both must have one dtype" in str(found)
                else:
                    assert found == expected, (backend, weight_dtype, x_dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYERS)
def test_values_are_those_of_the_torch_layer(name, dtype):
    build, shape = LAYERS[name]
    plain, x = build(), torch.randn(shape)
    shadow = watnn.convert(plain, NO_CHANGE, include=type(plain))
    results = []
    for module in (plain, shadow):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            y = module(given)
        y.float().square().mean().backward()
        results.append((y, given.grad, *(p.grad for p in module.parameters())))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("shadows", [1, 2])
@pytest.mark.parametrize("backend", ["native", "library", "reference"])
@pytest.mark.parametrize("name", LAYERS)
def test_autocast_is_the_cast_and_nothing_else(name, backend, shadows):
    """SW is mixed in fp32 within autocast too, so that the layer gives exactly what one of that dtype gives."""
    build, shape = LAYERS[name]
    transform = MultiplicativeNoise(0.3)
    if name in ("conv2d", "depthwise"):
        transform = Compose([RandomRotation(40, interpolation="bilinear"), transform])
    layer = watnn.convert(build(), transform, gain="channel", backend=backend, shadows=shadows)
    nn.init.uniform_(layer.gain, 0.5, 2)
    low = watnn.convert(build(), transform, gain="channel", backend=backend, shadows=shadows)
    low.load_state_dict(layer.state_dict())
    low.to(torch.bfloat16).gain.data = layer.gain.detach().clone()  # which autocast leaves in fp32
    x = torch.randn(shape)
    for module in (layer, low):
        watnn.dom(module, key=3)
    expected = low(x.bfloat16())
    dy = torch.randn_like(expected)
    expected.backward(dy)
    for backward_within in (False, True) if backend != "reference" else (False,):
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
            if backward_within:
                y.backward(dy)
        if not backward_within:
            y.backward(dy)
        assert torch.equal(y, expected)
        for ours, theirs in zip(layer.parameters(), low.parameters(), strict=True):
            assert torch.equal(ours.grad.to(theirs.grad.dtype), theirs.grad)


def test_the_dtype_set_for_autocast_is_used():
    layer, x = watnn.WATConv2d(3, 4, 3, transform=NO_CHANGE), torch.randn(2, 3, 6, 6)
    before = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)
    try:
        with torch.autocast("cpu"):
            assert layer(x).dtype == torch.float16
    finally:
        torch.set_autocast_dtype("cpu", before)
    with torch.autocast("cpu"):
        assert layer(x).dtype == before


@pytest.mark.parametrize("mode", ["aom", "dom"])
def test_modes_have_the_dtypes_of_training(mode):
    layer, x = watnn.WATConv2d(3, 4, 3, transform=NO_CHANGE, gain="channel").eval(), torch.randn(2, 3, 6, 6)
    getattr(watnn, mode)(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer(x).dtype == torch.float32


def test_fp16_trains_with_a_gradient_scaler():
    """Scaled steps are the steps of fp32 within fp16's precision, and a step that overflows is left out."""
    models = []
    for dtype in (torch.float16, torch.float32):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 2))
        model = watnn.convert(model, MultiplicativeNoise(0.2), gain="channel")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=dtype == torch.float16)
        for _ in range(5):
            x = torch.randn(8, 3, 6, 6)
            with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.float16):
                loss = model(x).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        models.append(model)
    for half, single in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, single, atol=5e-3, rtol=5e-3)

    before = [p.clone() for p in models[0].parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    optimizer = torch.optim.SGD(models[0].parameters(), lr=0.1)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = models[0](torch.randn(8, 3, 6, 6)).square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), before, strict=True))
    assert scaler.get_scale() == 2.0**39
