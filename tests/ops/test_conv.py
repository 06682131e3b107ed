"""`shadow_conv2d`: the reference against a plain convolution with a materialised SW, the library against the reference."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from tests.conftest import DEVICE, examples
from tests.ops import oracle
from tests.ops.cases import TOLERANCES, ConvCase, conv_cases, torch_op
from wat_kernels import Noise, TapTable, dispatch, shadow_conv2d
from wat_kernels.ops.conv import BACKENDS

CALL = dispatch.Call(DEVICE, torch.float32, (3, 3), 8, 8)
FUSED = [name for name, backend in BACKENDS.items() if name != "reference" and backend.supports(CALL)[0]]


def run(case: ConvCase, backend: str):
    return shadow_conv2d(
        case.x, case.weight, case.bias, table=case.table, key=case.key, gain=case.gain, noise=case.noise,
        shadows=case.shadows, backend=backend, **case.arguments,
    )  # fmt: skip


def gradients(y, leaves):
    dy = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view_as(y).to(y.dtype)
    return torch.autograd.grad(y, leaves, dy, materialize_grads=True)


def expected_of(case: ConvCase):
    weights = oracle.shadow_kernels(case.weight, case.table, case.key, case.noise, case.shadows)
    return oracle.conv2d(case.x, weights, case.bias, case.gain, **case.arguments)


@pytest.mark.parametrize("backend", ["reference", "library"])
@given(case=conv_cases())
@settings(max_examples=examples(80), deadline=None)
def test_equals_a_convolution_with_the_materialised_weight(backend, case):
    for leaf in case.leaves:
        leaf.requires_grad_()
    y, expected = run(case, backend), expected_of(case)
    torch.testing.assert_close(y, expected, **TOLERANCES[torch.float64])
    if y.numel():
        for grad, right in zip(gradients(y, case.leaves), gradients(expected, case.leaves), strict=True):
            torch.testing.assert_close(grad, right, **TOLERANCES[torch.float64])


@pytest.mark.parametrize("backend", ["reference", *FUSED])
def test_one_output_channel_and_one_pixel_in_channels_last(backend):
    """Where torch's convolution refuses a kernel with the strides that chunks give it."""
    table = TapTable.identity((1, 2))
    weight = torch.randn(1, 2, 1, 2).to(memory_format=torch.channels_last).requires_grad_()
    x = torch.randn(2, 2, 1, 2).to(memory_format=torch.channels_last)
    y = shadow_conv2d(x, weight, table=table, key=0, shadows=2, backend=backend)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), weight)[0], x.sum(0, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(case=conv_cases())
@settings(max_examples=20, deadline=None)
def test_low_precision_errs_no_more_than_torch_itself_twice(dtype, case):
    exact = expected_of(case)
    weights = oracle.shadow_kernels(case.weight, case.table, case.key, case.noise, case.shadows)
    plain = F.conv2d(case.x[:1].to(dtype), weights[0].to(dtype), None, **case.arguments)
    for name in ("x", "weight", "bias", "gain"):
        tensor = getattr(case, name)
        setattr(case, name, None if tensor is None else tensor.to(dtype))
    for backend in ("reference", "library"):
        y = run(case, backend)
        assert y.dtype == plain.dtype == dtype
        largest = max(1.0, float(exact.abs().max())) if exact.numel() else 1.0  # sums that cancel err by their terms
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(y.double(), exact, atol=40 * eps * largest, rtol=20 * eps)


ARGUMENTS = [
    {},
    {"padding": 1},
    {"stride": 2, "padding": (2, 1)},
    {"padding": "same", "dilation": 2},
    {"groups": 2, "padding": "valid"},
    {"groups": 4, "padding": 1, "dilation": (1, 2)},
]


@pytest.mark.parametrize("noise", [None, Noise("dropconnect", 0.3), Noise("multiplicative", 0.2)], ids=str)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("backend", ["reference", "library"])
def test_gradcheck_and_gradgradcheck(backend, arguments, noise):
    groups = arguments.get("groups", 1)
    maps = torch.stack([torch.eye(6), torch.randn(6, 6) * (torch.rand(6, 6) < 0.3)])
    table = TapTable(maps, [0.5, 0.5], (2, 3))
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True)
              for shape in ((4, 4, 4, 5), (4, 4 // groups, 2, 3), (4,), (4,))]  # fmt: skip

    def function(x, weight, bias, gain):
        return shadow_conv2d(
            x, weight, bias, gain=gain, table=table, key=17, noise=noise, shadows=2, backend=backend, **arguments
        )

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_third_derivative():
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 2, 3, 3), (2, 2, 2, 2))]
    table = TapTable(torch.randn(1, 4, 4), [1.0])
    results = []
    for backend in ("reference", "library"):
        y = shadow_conv2d(*leaves, table=table, key=0, backend=backend).pow(3).sum()
        for _ in range(3):
            y = sum(grad.square().sum() for grad in torch.autograd.grad(y, leaves, create_graph=True))
        results.append(torch.autograd.grad(y, leaves))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("op", ["shadow_conv", "shadow_conv_bwd"])
def test_opcheck(op, backend):
    table = TapTable(torch.randn(3, 6, 6) * (torch.rand(3, 6, 6) < 0.4), [0.3, 0.3, 0.4]).on(torch.get_default_device())
    arguments = (torch.tensor(3), *table, [1, 2], [0, 1, 1, 1], [2, 1], 2, False, 2, 2, 0.3)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(4, 4, 6, 7).to(memory_format=memory_format)
        weight, bias, gain = torch.randn(6, 2, 2, 3), torch.randn(6), torch.randn(6)
        forward = getattr(torch.ops.wat_kernels.shadow_conv, backend)
        if op == "shadow_conv":
            torch.library.opcheck(forward, (x, weight, bias, gain, *arguments))
            continue
        dy = torch.randn_like(forward(x, weight, bias, gain, *arguments))
        for mask in ([True] * 4, [False, True, False, False], [True, False, True, False]):
            torch.library.opcheck(
                getattr(torch.ops.wat_kernels.shadow_conv_bwd, backend), (dy, x, weight, gain, *arguments, mask)
            )


@pytest.mark.parametrize("backend", ["reference", "library"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_s_own_samples_with_the_identity(backend, dtype):
    seen = 0
    op = torch_op("nn.functional.conv2d")
    for sample in op.sample_inputs(DEVICE, dtype, requires_grad=False):
        weight = sample.args[0]
        rest = dict(zip(("bias", "stride", "padding", "dilation", "groups"), sample.args[1:], strict=False))
        kwargs = {**rest, **sample.kwargs}
        table = TapTable.identity(weight.shape[2:])
        x = sample.input
        y = shadow_conv2d(x, weight, kwargs.pop("bias", None), table=table, key=1, backend=backend, **kwargs)
        expected = op.op(x, *sample.args, **sample.kwargs)
        torch.testing.assert_close(y, expected)
        assert y.stride() == expected.stride()
        seen += 1
    assert seen >= 8


def test_a_key_draws_the_same_and_another_differs():
    x, weight = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)
    table = TapTable(torch.randn(16, 9, 9), [1 / 16] * 16)
    results = [shadow_conv2d(x, weight, table=table, key=key) for key in (5, 5, 6, torch.tensor(5), torch.tensor([5]))]
    assert (
        torch.equal(results[0], results[1])
        and torch.equal(results[0], results[3])
        and torch.equal(results[0], results[4])
    )
    assert not torch.allclose(results[0], results[2])


def test_chunks_use_their_own_row():
    x, weight = torch.randn(6, 3, 6, 6), torch.randn(4, 3, 3, 3)
    table = TapTable(torch.randn(64, 9, 9), [1 / 64] * 64)
    y = shadow_conv2d(x, weight, table=table, key=5, shadows=3)
    kernels = oracle.shadow_kernels(weight, table, 5, shadows=3)
    assert not torch.allclose(kernels[0], kernels[1])
    for s in range(3):
        torch.testing.assert_close(y[2 * s : 2 * s + 2], F.conv2d(x[2 * s : 2 * s + 2], kernels[s]))


def test_thread_count_does_not_change_the_library():
    x, weight = torch.randn(4, 8, 16, 16), torch.randn(8, 8, 3, 3)
    table = TapTable(torch.randn(4, 9, 9), [0.25] * 4)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(shadow_conv2d(x, weight, table=table, key=2, noise=Noise("multiplicative", 0.1)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("backend", FUSED)
def test_nothing_but_x_weight_gain_and_key_is_saved(backend):
    x, weight = torch.randn(4, 8, 6, 6, requires_grad=True), torch.randn(8, 8, 3, 3, requires_grad=True)
    gain, bias = torch.ones(8, requires_grad=True), torch.zeros(8, requires_grad=True)
    table = TapTable(torch.randn(9, 9, 9), [1 / 9] * 9)
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        shadow_conv2d(x, weight, bias, table=table, key=2, gain=gain, noise=Noise("dropconnect", 0.1), backend=backend)
    extra = [t for t in saved if t.data_ptr() not in (x.data_ptr(), weight.data_ptr(), gain.data_ptr())]
    assert sum(t.numel() * t.element_size() for t in extra) == 8  # the key


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3)])
def test_a_crop_may_start_beyond_a_small_image(size):
    """With large padding and dilation the active taps can see nothing but padding on one side."""
    maps = torch.zeros(9, 9, 9)
    maps[range(9), range(9), range(9)] = 1.0  # row t: only tap t
    table = TapTable(maps, [1 / 9] * 9, (3, 3))
    x = torch.randn(2, 2, *size, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, requires_grad=True)
    for key in range(30):
        arguments = {"table": table, "key": key, "padding": 4, "dilation": 3}
        y, expected = (shadow_conv2d(x, weight, backend=name, **arguments) for name in ("library", "reference"))
        torch.testing.assert_close(y, expected)
        for grad, right in zip(gradients(y, [x, weight]), gradients(expected, [x, weight]), strict=True):
            torch.testing.assert_close(grad, right)


@pytest.mark.parametrize("backend", FUSED)
def test_second_derivatives_are_those_of_the_reference(backend):
    shapes = ((4, 4, 5, 6), (6, 2, 3, 3), (6,), (6,))
    leaves = [torch.randn(shape, requires_grad=True) for shape in shapes]
    table = TapTable(torch.randn(3, 9, 9) * (torch.rand(3, 9, 9) < 0.4), [0.3, 0.3, 0.4])
    results = []
    for name in (backend, "reference"):
        x, weight, bias, gain = leaves
        y = shadow_conv2d(x, weight, bias, table=table, key=5, gain=gain, groups=2, padding=1, shadows=2,
                          noise=Noise("multiplicative", 0.2), backend=name)  # fmt: skip
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(grad.square().sum() for grad in first), leaves, materialize_grads=True))
    for ours, right in zip(*results, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))
