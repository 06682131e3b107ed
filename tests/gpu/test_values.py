"""Fused backends on the GPU against the reference: values, masks across devices, layouts, sizes, repeat runs."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from watnn.transforms import WAT

from tests.gpu.gpu_backends import DENSE, DEPTHWISE, LINEAR, fused
from tests.ops.cases import TOLERANCES, conv_cases, linear_cases
from wat_kernels import Noise, TapTable, dispatch, draw_rows, shadow_conv2d, shadow_linear

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NOISES = [None, Noise("dropconnect", 0.3), Noise("multiplicative", 0.2)]
# each example is a problem that Triton compiles three kernels for
RANDOM = {"deadline": None, "max_examples": 6, "suppress_health_check": list(HealthCheck)}


def to_gpu(tensors, dtype):
    return [None if t is None else t.detach().to("cuda", dtype).requires_grad_() for t in tensors]


def agree(run, inputs, backend, dtype):
    """y and all gradients of `run(backend, *leaves)` in `dtype` against the reference in fp64 on the same numbers."""
    leaves = to_gpu(inputs, dtype)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in leaves]
    found, dy = [], None
    for name, given_leaves in ((backend, leaves), ("reference", exact)):
        y = run(name, *given_leaves)
        if dy is None:  # the same numbers for both, or a bias's gradient is the sum of their rounding errors
            dy = torch.cos(torch.arange(y.numel(), device=y.device, dtype=torch.float64)).view_as(y).to(dtype)
        dy = dy.to(y.dtype)
        present = [leaf for leaf in given_leaves if leaf is not None]
        found.append((y, *torch.autograd.grad(y, present, dy, materialize_grads=True)))
    for one, other in zip(*found, strict=True):
        assert one.dtype == dtype
        scale = max(1.0, float(other.abs().max()) if other.numel() else 1.0)
        torch.testing.assert_close(one.double() / scale, other / scale, **TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", fused("shadow_conv", DENSE))
@given(case=conv_cases())
@settings(**RANDOM)
def test_random_convolutions(backend, dtype, case):
    def run(name, x, weight, bias, gain):
        return shadow_conv2d(x, weight, bias, gain=gain, table=case.table, key=case.key, noise=case.noise,
                             shadows=case.shadows, backend=name, **case.arguments)  # fmt: skip

    agree(run, (case.x, case.weight, case.bias, case.gain), backend, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", fused("shadow_linear", LINEAR))
@given(case=linear_cases())
@settings(**RANDOM)
def test_random_linear_layers(backend, dtype, case):
    call = dispatch.Call("cuda", dtype, noise=case.noise.code if case.noise else 0)
    if backend not in fused("shadow_linear", call):
        return

    def run(name, x, weight, bias, gain):
        return shadow_linear(x, weight, bias, gain=gain, grid=case.grid, key=case.key, noise=case.noise,
                             shadows=case.shadows, backend=name)  # fmt: skip

    agree(run, (case.x, case.weight, case.bias, case.gain), backend, dtype)


SHAPES = [  # x, weight, groups: many tiles of everything, channels that no tile divides
    ((8, 128, 28, 28), (256, 128, 3, 3), 1),
    ((4, 96, 17, 19), (72, 96, 3, 3), 1),
    ((4, 66, 15, 13), (70, 33, 5, 5), 2),
    ((16, 144, 32, 32), (144, 1, 3, 3), 144),
    ((5, 90, 19, 21), (90, 1, 5, 5), 90),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_layers_of_real_networks(shape, form, dtype, stride):
    size, weight_size, groups = shape
    x = torch.randn(size).to(memory_format=form)
    weight = torch.randn(weight_size).to(memory_format=form) / (weight_size[1] * weight_size[2]) ** 0.5
    inputs = (x, weight, torch.randn(weight_size[0]), torch.rand(weight_size[0]) + 0.5)
    table = WAT().tap_table(weight_size[2])
    call = (DEPTHWISE if weight_size[1] == 1 else DENSE)._replace(
        dtype=dtype, kernel=weight_size[2:], in_channels=size[1], out_channels=weight_size[0], groups=groups
    )
    backends = fused("shadow_conv", call)
    assert backends
    noise = NOISES[(stride + SHAPES.index(shape) + DTYPES.index(dtype)) % len(NOISES)]  # in turn: compiling takes long
    for backend in backends:
        agree(
            lambda name, x, w, b, g: shadow_conv2d(
                x, w, b, gain=g, table=table, key=11, noise=noise, padding=weight_size[2] // 2, stride=stride,
                groups=groups, backend=name,
            ),
            inputs, backend, dtype,
        )  # fmt: skip


ROWS = [1, 7, 64, 200]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("features", [(1024, 512), (1000, 333)], ids=str)
def test_linear_layers_of_real_networks(rows, features, dtype):
    noise = NOISES[(ROWS.index(rows) + DTYPES.index(dtype)) % len(NOISES)]
    inputs = (torch.randn(rows, features[0]), torch.randn(features[::-1]) / features[0] ** 0.5,
              torch.randn(features[1]), torch.rand(1) + 0.5)  # fmt: skip
    for backend in fused("shadow_linear", LINEAR._replace(dtype=dtype, noise=noise.code if noise else 0, rows=rows)):
        agree(
            lambda name, x, w, b, g: shadow_linear(x, w, b, gain=g, key=3, noise=noise, backend=name),
            inputs, backend, dtype,
        )  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", *fused("shadow_linear", LINEAR)])
def test_masks_are_those_of_the_cpu_bit_for_bit(backend):
    weight, x = torch.ones(200, 64), torch.eye(64)  # few rows, which all backends take
    for key in range(5):
        arguments = {"key": key, "noise": Noise("dropconnect", 0.3)}
        right = shadow_linear(x, weight, backend="reference", **arguments)
        assert torch.equal(shadow_linear(x.cuda(), weight.cuda(), backend=backend, **arguments).cpu(), right)


@pytest.mark.parametrize("backend", ["reference", *fused("shadow_conv", DENSE)])
def test_rows_are_those_of_the_cpu(backend):
    """An impulse through one channel shows SW itself, and so the row of each of 64 shadows."""
    table, shadows = WAT().tap_table(3), 64
    weight = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    x = torch.zeros(shadows, 1, 5, 5)
    x[:, :, 2, 2] = 1
    arguments = {"table": table, "key": 77, "shadows": shadows}
    assert torch.equal(draw_rows(table, torch.tensor(77).cuda(), shadows).cpu(), draw_rows(table, 77, shadows))
    right = shadow_conv2d(x, weight, backend="reference", **arguments)
    torch.testing.assert_close(shadow_conv2d(x.cuda(), weight.cuda(), backend=backend, **arguments).cpu(), right)


@pytest.mark.parametrize("backend", fused("shadow_conv", DENSE))
def test_misaligned_and_strided_tensors(backend):
    table = WAT().tap_table(3)
    whole = torch.randn(2, 21, 13, 12, device="cuda").to(memory_format=torch.channels_last)
    stored = torch.randn(2 * 16 * 9 * 8 + 1, device="cuda")
    images = (whole[:, 3:19], whole[:, :16, 1::2, ::2], stored[1:].view(2, 16, 9, 8), whole[:, :16].transpose(2, 3))
    kernels = torch.randn(8 * 16 * 9 + 1, device="cuda")[1:].view(8, 16, 3, 3)
    for x in images:
        for weight in (kernels, kernels.mT, kernels.to(memory_format=torch.channels_last)):
            arguments = {"table": table, "key": 5, "padding": 1}
            found, right = (shadow_conv2d(x, weight, backend=name, **arguments) for name in (backend, "reference"))
            torch.testing.assert_close(found, right, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("backend", fused("shadow_conv", DENSE))
def test_more_than_2_to_the_31_elements(backend):
    """The last image lies beyond 2**31 elements; it is compared with a convolution of that image alone."""
    free, _ = torch.cuda.mem_get_info()
    if free < 40 << 30:
        pytest.skip("needs 40 GiB of free GPU memory")
    table = WAT().tap_table(3)
    x = torch.empty(65, 64, 720, 720, device="cuda", dtype=torch.bfloat16, memory_format=torch.channels_last)
    assert x.numel() > 2**31
    x.normal_()
    weight = torch.randn(64, 64, 3, 3, device="cuda", dtype=torch.bfloat16)
    y = shadow_conv2d(x, weight, table=table, key=9, padding=1, backend=backend)
    alone = shadow_conv2d(x[-1:].clone(), weight, table=table, key=9, padding=1, backend="library")
    torch.testing.assert_close(y[-1:], alone, atol=0.5, rtol=5e-2)


@pytest.mark.parametrize(
    ("backend", "groups"), [*((name, 1) for name in fused("shadow_conv", DENSE)),
                            *((name, 64) for name in fused("shadow_conv", DEPTHWISE))]
)  # fmt: skip
def test_repeat_runs_are_equal_bit_for_bit(backend, groups):
    call = DENSE._replace(in_channels=64, out_channels=64, groups=groups)
    if backend not in fused("shadow_conv", call):
        pytest.skip("refused for this number of groups")
    x = torch.randn(16, 64, 14, 14, device="cuda").to(memory_format=torch.channels_last)
    leaves = [x, torch.randn(64, 64 // groups, 3, 3, device="cuda"), torch.rand(64, device="cuda")]
    for leaf in leaves:
        leaf.requires_grad_()
    runs = []
    for _ in range(5):
        y = shadow_conv2d(*leaves[:2], gain=leaves[2], table=TapTable.identity((3, 3)), key=1, padding=1,
                          noise=Noise("multiplicative", 0.1), groups=groups, backend=backend)  # fmt: skip
        runs.append((y, *torch.autograd.grad(y, leaves, torch.ones_like(y))))
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(run, runs[0], strict=True))
