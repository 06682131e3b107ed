"""One kernel a pass, and memory beyond the results."""

import pytest
import torch
from watnn.transforms import WAT

from benchmarks.gpu_facts import kernels_of, peak_above
from tests.gpu.gpu_backends import DENSE, DEPTHWISE, LINEAR, fused
from wat_kernels import Noise

TABLE = WAT().tap_table(3)
REST = ([1, 1], [1, 1, 1, 1], [1, 1])
SEVERAL = 2 << 20  # bytes: the bound of what a pass may hold besides its results


def conv(backend, groups):
    """(forward, backward) of the op itself: the key is a tensor already."""
    key = torch.tensor(3, device="cuda")
    form = {"memory_format": torch.channels_last}
    x = torch.randn(32, 64, 28, 28, device="cuda", dtype=torch.bfloat16).to(**form)
    weight = torch.randn(64, 64 // groups, 3, 3, device="cuda", dtype=torch.bfloat16).to(**form)
    arguments = (key, *TABLE.on(x.device), *REST, groups, 1, 0, 0.0)

    def forward():
        return getattr(torch.ops.wat_kernels.shadow_conv2d, backend)(x, weight, None, None, *arguments)

    dy = torch.randn_like(x)

    def backward(mask):
        return getattr(torch.ops.wat_kernels.shadow_conv2d_bwd, backend)(dy, x, weight, None, *arguments, mask)

    return forward, backward


def linear(backend, rows):
    noise = Noise("dropconnect", 0.3)
    key = torch.tensor(3, device="cuda")
    x = torch.randn(rows, 1024, device="cuda", dtype=torch.bfloat16)
    weight, dy = torch.randn(2048, 1024, device="cuda", dtype=x.dtype), torch.randn(rows, 2048, device="cuda", dtype=x.dtype)  # fmt: skip
    arguments = (key, None, None, 1, noise.code, noise.amount)

    def forward():
        return getattr(torch.ops.wat_kernels.shadow_linear, backend)(x, weight, None, None, *arguments)

    def backward(mask):
        return getattr(torch.ops.wat_kernels.shadow_linear_bwd, backend)(dy, x, weight, None, *arguments, mask)

    return forward, backward


LAYERS = [
    *(pytest.param(lambda name=name: conv(name, 1), id=f"dense-{name}") for name in fused("shadow_conv2d", DENSE)),
    *(pytest.param(lambda name=name: conv(name, 64), id=f"depthwise-{name}") for name in fused("shadow_conv2d", DEPTHWISE)),
    *(pytest.param(lambda name=name: linear(name, 32), id=f"linear-{name}") for name in fused("shadow_linear", LINEAR)),
]  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
def test_one_launch_a_pass(layer):
    forward, backward = layer()
    for name, run in (
        ("forward", forward),
        ("data gradient", lambda: backward([True, False, False, False])),
        ("weight gradient", lambda: backward([False, True, False, False])),
    ):
        found = kernels_of(run)
        assert len(found) == 1, f"{name}: {found}"


@pytest.mark.parametrize("layer", LAYERS)
def test_nothing_of_the_weight_s_size_is_held(layer):
    forward, backward = layer()
    for run in (forward, lambda: backward([True, True, False, False])):
        run()
        results = run()
        results = results if isinstance(results, tuple) else (results,)
        held = sum(tensor.untyped_storage().nbytes() for tensor in results)
        del results
        assert peak_above(run) <= held + SEVERAL
