"""The depthwise kernels of `shadow_conv.native` against a plain fp64 convolution, for each instruction set."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.native.comparison import tried, tried_at_length
from tests.native.test_conv_native import (
    Case,
    check,
    convolutions,
    dy_of,
    mixed_table,
    native,
    plain_case,
)
from wat_kernels import Noise, TapTable, philox
from wat_kernels.extension import NATIVE

pytestmark = pytest.mark.skipif(not NATIVE.available, reason=NATIVE.reason)

CHANNELS = st.one_of(st.integers(1, 40), st.sampled_from([47, 48, 64, 65, 130]))


@st.composite
def cases(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    kernel = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, 4)) for _ in range(4))
    shadows = draw(st.sampled_from([1, 1, 2, 3]))
    batch = shadows * draw(st.sampled_from([0, 1, 1, 2, 3, 17]))
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [
        max(1, span[axis] - padding[2 * axis] - padding[2 * axis + 1] + draw(st.integers(0, 21))) for axis in (0, 1)
    ]
    channels = draw(CHANNELS)
    multiplier = draw(st.sampled_from([1, 1, 1, 2, 3]))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16]))

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    x, weight = normal(batch, channels, *size), normal(channels * multiplier, 1, *kernel)
    return Case(
        *draw(convolutions(x, weight, [dtype], [dtype], generator)), shadows, stride, padding, dilation, channels
    )


@given(case=cases())
@tried(300)
def test_equals_a_convolution_with_the_materialised_weight(case):
    check(case)


@given(case=cases())
@tried(60)
def test_every_instruction_set(isa, case):
    check(case)


@pytest.mark.long
@given(case=cases())
@tried_at_length()
def test_long_equals_a_convolution_with_the_materialised_weight(case):
    check(case)


LARGE = [
    # x, kernel: channels in several blocks, one large image in bands, many taps, one wide line
    ((3, 3000, 6, 5), (3, 3)),
    ((1, 20, 90, 70), (5, 5)),
    ((2, 40, 20, 21), (19, 17)),
    ((1, 5, 1, 3000), (1, 5)),
]


@pytest.mark.parametrize("shapes", LARGE, ids=str)
def test_large_shapes(isa, shapes):
    x = torch.randn(shapes[0]).contiguous(memory_format=torch.channels_last)
    channels = x.shape[1]
    check(plain_case(x, torch.randn(channels, 1, *shapes[1]), groups=channels, padding=(2, 1, 2, 2), noise=Noise("dropconnect", 0.3),
                     gain=torch.randn(channels), bias=torch.randn(channels)))  # fmt: skip


@pytest.mark.parametrize("shape", [(8, 48, 12, 12), (1, 40, 33, 31), (66, 17, 3, 4)], ids=str)
def test_bit_identical_for_any_number_of_threads_and_from_run_to_run(isa, shape):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    channels = shape[1]
    case = plain_case(x, torch.randn(channels, 1, 3, 3), mixed_table(9), bias=torch.randn(channels), gain=torch.randn(channels),
                      shadows=1 + (shape[0] > 1), noise=Noise("multiplicative", 0.1), groups=channels)  # fmt: skip
    dy, threads, results = dy_of(case, native(case)[0]), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8, 3, 1):
            torch.set_num_threads(count)
            results.append(native(case, dy))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_masks_bit_for_bit(isa):
    channels, amount, key = 70, 0.37, 99
    mask = philox.keep_mask(torch.tensor(key), 1, channels * 6, amount).view(channels, 2, 3)
    case = plain_case(torch.ones(1, channels, 1, 1), torch.ones(channels, 1, 2, 3), key=key, noise=Noise("dropconnect", amount),
                      padding=(1, 1, 2, 2), groups=channels)  # fmt: skip
    assert torch.equal(native(case)[0][0].flip(1, 2) != 0, mask)


def test_nan_propagates_through_active_taps_only(isa):
    """One active tap, at the left of the middle row: y[h, w] sees x[h, w - 1] alone."""
    maps = torch.zeros(1, 9, 9)
    maps[0, 3, 4] = 1.0
    x = torch.randn(2, 33, 6, 7)
    x[0, 5, 2, 3] = math.nan
    weight = torch.randn(33, 1, 3, 3)
    weight[7, 0, 0, 0] = math.nan  # no output reads it
    case = plain_case(x, weight, TapTable(maps, [1.0]), groups=33)
    y, dx, dweight = native(case, torch.ones(2, 33, 6, 7))[:3]
    assert y.isnan().nonzero().tolist() == [[0, 5, 2, 4]]
    assert dx.isfinite().all()
    assert dweight.isnan().nonzero().tolist() == [[5, 0, 1, 1]]
    assert torch.equal(dweight[:, 0, 0, 0], torch.zeros(33))


def test_contiguous_and_channels_last_agree_bit_for_bit():
    x, weight = torch.randn(4, 20, 9, 8), torch.randn(20, 1, 3, 3)
    first, second = (native(plain_case(x.contiguous(memory_format=form), weight, groups=20), torch.ones(4, 20, 9, 8))
                     for form in (torch.contiguous_format, torch.channels_last))  # fmt: skip
    assert first[0].is_contiguous() and second[0].is_contiguous(memory_format=torch.channels_last)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))
