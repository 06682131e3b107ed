"""`shadow_conv.native` on products of pairs of bf16: how SW is rounded, odd numbers of everything, errors beside torch's."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.native.conftest import ISAS
from tests.native.test_conv_native import (
    LARGE,
    check,
    dy_of,
    layout,
    mixed_table,
    native,
    plain_case,
)
from wat_kernels import Noise, TapTable
from wat_kernels.ops.conv.reference import shadow_weights
from wat_kernels.signature import Draw

pytestmark = pytest.mark.skipif(
    "avx512bf16" not in ISAS, reason="this processor has no AVX512-BF16, or there is no build"
)

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def _pairs():
    before = torch.ops.wat_kernels.native_isa("")
    torch.ops.wat_kernels.native_isa("avx512bf16")
    yield
    torch.ops.wat_kernels.native_isa(before)


def random_case(x_shape, weight_shape, table=None, **changes):
    x, weight = (torch.randn(shape).to(BF16) for shape in (x_shape, weight_shape))
    return plain_case(x.to(memory_format=torch.channels_last), weight, table, **changes)


def reference_weight(case):
    """SW of the only shadow, in bf16, from the reference."""
    code, amount = (0, 0.0) if case.noise is None else (case.noise.code, case.noise.amount)
    table = case.table.on(torch.device("cpu"))
    return shadow_weights(case.weight, Draw(torch.tensor(case.key), table, 1, code, amount))[0]


def computed_weight(case):
    """SW (O, I, kh, kw) as the forward and as the data gradient multiply by it: ones pick out each element."""
    outputs, inputs, *kernel = case.weight.shape
    pad = (kernel[0] - 1, kernel[0] - 1, kernel[1] - 1, kernel[1] - 1)
    ones = torch.eye(inputs).to(BF16).view(inputs, inputs, 1, 1)
    forward = native(plain_case(ones, case.weight, case.table, key=case.key, noise=case.noise, padding=pad))[0]
    x = torch.zeros(outputs, inputs, *kernel, dtype=BF16)
    gradient = plain_case(x, case.weight, case.table, key=case.key, noise=case.noise, padding=(0, 0, 0, 0))
    dx = native(gradient, torch.eye(outputs).to(BF16).view(outputs, outputs, 1, 1))[1]
    return forward.flip(2, 3).transpose(0, 1), dx


MOVED = TapTable(torch.eye(6)[torch.tensor([3, 1, 5, 0, 2, 4])].unsqueeze(0), [1.0])


@pytest.mark.parametrize("shape", [(40, 24, 2, 3), (33, 71, 3, 2), (5, 3, 1, 6)], ids=str)
@pytest.mark.parametrize("noise", [None, Noise("dropconnect", 0.3)], ids=str)
def test_the_shadow_weight_is_rounded_once_as_in_the_reference(shape, noise):
    case = random_case((1, shape[1], 7, 7), shape, MOVED, noise=noise, key=5)
    for computed in computed_weight(case):
        assert torch.equal(computed, reference_weight(case))


@pytest.mark.parametrize("noise", [None, Noise("multiplicative", 0.2)], ids=str)
def test_mixed_taps_are_rounded_once_from_fp32(noise):
    """The last bit of fp32 may differ from the reference's, and so may in rare cases the rounding."""
    case = random_case((1, 24, 7, 7), (40, 24, 3, 3), mixed_table(9, 1), noise=noise, key=5)
    right = reference_weight(case)
    for computed in computed_weight(case):
        assert (computed == right).float().mean() > 0.998
        torch.testing.assert_close(computed, right, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("channels", [1, 2, 3, 16, 17, 31, 33])
def test_odd_numbers_of_images_and_channels(batch, channels):
    for form in ("channels_last", "strided channels_last"):
        case = random_case((batch, channels, 6, 5), (35, channels, 3, 3), mixed_table(9), bias=torch.randn(35).to(BF16))
        case.x = layout(case.x, form)
        check(case)


@pytest.mark.parametrize("shadows, groups", [(2, 1), (3, 3), (1, 5)])
def test_shadows_of_an_odd_number_of_images_and_groups_of_odd_channels(shadows, groups):
    case = random_case((3 * shadows, 7 * groups, 9, 8), (9 * groups, 7, 3, 3), mixed_table(9), shadows=shadows,
                       groups=groups, gain=torch.randn(9 * groups), noise=Noise("dropconnect", 0.3))  # fmt: skip
    case.x = layout(case.x, "strided channels_last")  # NaN between the pixels
    check(case)


@pytest.mark.parametrize("shapes", LARGE, ids=str)
@pytest.mark.parametrize("noise", [None, Noise("dropconnect", 0.4)], ids=str)
def test_shapes_that_do_not_fit_one_panel(shapes, noise):
    check(random_case(*shapes, noise=noise, padding=(2, 1, 2, 2)))


WINDOWS = [
    # (x, weight, stride, dilation): what a block of pixels reads of x, from all of one to more than may be packed
    ((5, 20, 40, 40), (8, 20, 3, 3), (3, 2), (5, 4)),
    ((3, 30, 3, 700), (8, 30, 2, 5), (1, 3), (1, 7)),
    ((2, 28, 130, 130), (4, 28, 3, 3), (1, 1), (60, 60)),
    ((2, 28, 20, 130), (4, 28, 2, 3), (1, 1), (1, 60)),
]


@pytest.mark.parametrize("shapes", WINDOWS, ids=str)
def test_windows_of_the_weight_gradient(shapes):
    x, weight, stride, dilation = shapes
    table = mixed_table(math.prod(weight[2:]))
    check(random_case(x, weight, table, stride=stride, dilation=dilation))


def test_bit_identical_for_any_number_of_threads_and_from_run_to_run():
    case = random_case((10, 45, 12, 13), (70, 45, 3, 3), mixed_table(9), bias=torch.randn(70), gain=torch.randn(70),
                       shadows=2, noise=Noise("multiplicative", 0.1))  # fmt: skip
    dy, threads, results = dy_of(case, native(case)[0]), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 3, 1):
            torch.set_num_threads(count)
            results.append(native(case, dy))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("shapes", [((16, 64, 16, 16), (64, 64, 3, 3)), ((64, 16, 32, 32), (16, 16, 3, 3))], ids=str)
@pytest.mark.parametrize("offset", [0, 1])
def test_errors_are_at_most_twice_those_of_torch(shapes, offset):
    """offset: terms of one sign mostly, whose sums grow."""
    x, weight = (torch.randn(shape) + offset for shape in shapes)
    x, weight = x.to(BF16).to(memory_format=torch.channels_last), weight.to(BF16)
    case = plain_case(x, weight, bias=torch.zeros(len(weight), dtype=BF16))
    dy = (torch.randn(native(case)[0].shape) + offset).to(BF16).to(memory_format=torch.channels_last)

    def gradients(dtype):
        leaves = [leaf.to(dtype).requires_grad_() for leaf in (x, weight, case.bias)]
        y = F.conv2d(*leaves, padding=1)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(dtype))]

    names = ("y", "dx", "dweight", "dbias")
    for name, ours, torchs, exact in zip(
        names, native(case, dy), gradients(BF16), gradients(torch.float64), strict=False
    ):
        mine, other = ((found.double() - exact).norm() / exact.norm() for found in (ours, torchs))
        assert mine <= 2 * other, name


def test_nothing_but_the_pairs_kernel_rounds_the_shadow_weight():
    case = random_case((4, 64, 8, 8), (64, 64, 3, 3), mixed_table(9))
    pairs = native(case)[0]
    torch.ops.wat_kernels.native_isa("avx512")
    assert not torch.equal(native(case)[0], pairs)
