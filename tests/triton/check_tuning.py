"""Results do not depend on what tuning measured before: a problem's first launch is as right as its later ones."""

import pytest
import torch
import triton

from tests.triton.check_conv import TRANSLATIONS, results
from tests.triton.device import DEVICE
from wat_kernels import MatrixGrid, Noise, shadow_linear, triton_launch
from wat_kernels.ops.conv import triton as conv2d
from wat_kernels.ops.linear import triton as linear


@pytest.fixture(params=["narrow first, wide wins", "wide first, narrow wins"])
def measured(request, monkeypatch, tmp_path):
    """Launches go through the tuner, in the interpreter too. Returns what it ran."""
    ran = []
    monkeypatch.setattr(triton_launch, "_MEASURES", True)
    triton_launch.forget_plans()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for op in (conv2d, linear):
        monkeypatch.setattr(op, "refusal", lambda call: "")  # of tensors on the CPU
    suited = triton_launch.Tuned.suited

    def in_order(tuned, arguments):
        found = suited(tuned, arguments)
        found.sort(key=lambda config: sum(config.kwargs.values()), reverse=request.param.startswith("wide"))
        return found

    def bench(call):
        call()
        ran.append(call)
        return 1.0 / len(ran)  # whoever is measured last wins

    monkeypatch.setattr(triton_launch.Tuned, "suited", in_order)
    monkeypatch.setattr(triton_launch, "_bench", bench)
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    if DEVICE == "cpu":  # what is interpreted has no key
        monkeypatch.setattr(triton.runtime.interpreter.InterpretedFunction, "cache_key", "", raising=False)
    yield ran
    triton_launch.forget_plans()


def compare(found, right):
    for one, other in zip(found, right, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one.double() / scale, other / scale, rtol=1e-4, atol=1e-5)


def double(tensors):
    return [t.double() for t in tensors]


@pytest.mark.parametrize("gain_size", [1, 70])
def test_every_gradient_of_a_convolution(measured, gain_size):
    torch.manual_seed(0)
    x = torch.randn(2, 40, 3, 3, device=DEVICE).to(memory_format=torch.channels_last)
    leaves = (
        x,
        torch.randn(70, 40, 3, 3, device=DEVICE),
        torch.randn(70, device=DEVICE),
        torch.rand(gain_size, device=DEVICE) + 0.5,
    )
    settings = {"table": TRANSLATIONS, "key": 5, "padding": 1}
    right = results("reference", *double(leaves), **settings)
    compare(results("triton", *leaves, **settings), right)
    measurements = len(measured)
    assert measurements > 6  # three passes, of several configurations each
    compare(results("triton", *leaves, **settings), right)
    assert len(measured) == measurements


@pytest.mark.parametrize("grid", [None, MatrixGrid([[0, 0, 9 << 16, 7 << 16]], [1.0])])
def test_every_gradient_of_a_linear_layer(measured, grid):
    torch.manual_seed(0)
    leaves = [torch.randn(*shape, device=DEVICE) for shape in ((70, 136), (140, 136), (140,), (140,))]

    def gradients(backend, leaves):
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        y = shadow_linear(
            *leaves[:3], gain=leaves[3], key=3, grid=grid, noise=Noise("dropconnect", 0.3), backend=backend
        )
        return y.detach(), *torch.autograd.grad(
            y, leaves, torch.cos(torch.arange(y.numel(), device=DEVICE)).view_as(y).to(y.dtype)
        )

    right = gradients("reference", double(leaves))
    compare(gradients("triton", leaves), right)
    measurements = len(measured)
    assert measurements >= 4
    compare(gradients("triton", leaves), right)
    assert len(measured) == measurements
