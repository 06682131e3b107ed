"""Transposed convolutions of `shadow_conv.native` for every instruction set: many panels, deep ones, and threads."""

import itertools

import pytest
import torch
from hypothesis import given, settings

from tests.conftest import examples
from tests.ops.cases import TOLERANCES, conv_cases_of
from wat_kernels import Noise, TapTable, shadow_conv, shadow_conv_transpose2d
from wat_kernels.extension import NATIVE

pytestmark = [
    pytest.mark.skipif(not NATIVE.available, reason=NATIVE.reason),
    pytest.mark.cpu_only,
]

# x, weight, settings: lanes that end in a part, groups, a panel that comes in parts, depthwise, dy in many blocks
SHAPES = [
    ((2, 40, 9, 8), (40, 35, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
    ((1, 600, 3, 4), (600, 17, 5, 5), {"stride": 3}),
    ((2, 33, 4, 5), (33, 600, 4, 4), {"stride": 2, "padding": 1}),
    ((4, 70, 11, 10), (70, 1, 3, 3), {"stride": 2, "padding": 1, "groups": 70}),
    ((6, 16, 40, 38), (16, 20, 2, 2), {"stride": 2, "dilation": 3}),
]


def results(x, weight, bias, gain, backend, dtype=None, **arguments):
    """y, dx, dweight, dbias and dgain."""
    leaves = [t.to(dtype or t.dtype).requires_grad_() for t in (x, weight, bias, gain)]
    y = shadow_conv_transpose2d(*leaves[:3], gain=leaves[3], backend=backend, **arguments)
    dy = torch.cos(torch.arange(y.numel()) * 1.7).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def problem(x_shape, weight_shape, groups, one_gain=False):
    taps = weight_shape[2] * weight_shape[3]
    maps = torch.stack([torch.eye(taps), torch.randn(taps, taps) * (torch.rand(taps, taps) < 0.3)])
    outputs = weight_shape[1] * groups
    gain = torch.randn(1 if one_gain else outputs)
    return (torch.randn(x_shape), torch.randn(weight_shape), torch.randn(outputs), gain), TapTable(maps, [0.5, 0.5])


@pytest.mark.parametrize("one_gain", [False, True])
@pytest.mark.parametrize("shapes", SHAPES, ids=lambda shapes: str(shapes[1]))
def test_large_shapes(isa, shapes, one_gain):
    x_shape, weight_shape, arguments = shapes
    tensors, table = problem(x_shape, weight_shape, arguments.get("groups", 1), one_gain)
    noise = Noise("multiplicative", 0.2)
    for form, key in itertools.product((torch.contiguous_format, torch.channels_last), (1, 2)):
        x, weight, *rest = tensors
        given = {**arguments, "table": table, "key": key, "noise": noise}
        found = results(x.to(memory_format=form), weight.to(memory_format=form), *rest, "native", **given)
        right = results(x, weight, *rest, "reference", torch.float64, **given)
        for one, other in zip(found, right, strict=True):
            scale = float(other.abs().max())
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("shapes", SHAPES, ids=lambda shapes: str(shapes[1]))
def test_bit_identical_for_any_number_of_threads(shapes):
    x_shape, weight_shape, arguments = shapes
    tensors, table = problem(x_shape, weight_shape, arguments.get("groups", 1))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(*tensors, "native", table=table, key=1, **arguments))
    finally:
        torch.set_num_threads(before)
    for one, other, third in zip(*found, strict=True):
        assert torch.equal(one, other) and torch.equal(one, third)


@pytest.mark.parametrize("dims", [1, 2])
def test_every_instruction_set(isa, dims):
    @given(case=conv_cases_of(dims, True, torch.float32))
    @settings(max_examples=examples(40), deadline=None)
    def check(case):
        y, right = (
            shadow_conv(
                case.x, case.weight, case.bias, table=case.table, key=case.key, gain=case.gain, noise=case.noise,
                shadows=case.shadows, transposed=True, backend=backend, **case.arguments,
            )
            for backend in ("native", "reference")
        )  # fmt: skip
        scale = max(1.0, float(right.abs().max()))
        torch.testing.assert_close(y / scale, right / scale, **TOLERANCES[torch.float32])

    check()


def test_nothing_but_taps_that_are_active_is_multiplied():
    """NaN in x reaches y through active taps alone; without one, y is the bias."""
    maps = torch.zeros(1, 9, 9)
    maps[0, 4, 4] = 1.0
    x, weight, bias = torch.ones(1, 2, 5, 5), torch.ones(2, 3, 3, 3), torch.arange(3.0)
    x[0, 0, 2, 2] = float("nan")
    y = shadow_conv_transpose2d(x, weight, bias, table=TapTable(maps, [1.0]), key=1, padding=1, backend="native")
    assert y.isnan().sum() == 3 and y[0, :, 2, 2].isnan().all()
    empty = TapTable(torch.zeros(1, 9, 9), [1.0])
    y = shadow_conv_transpose2d(x, weight, bias, table=empty, key=1, stride=2, output_padding=1, backend="native")
    assert torch.equal(y, bias.view(1, 3, 1, 1).expand(1, 3, 12, 12))
