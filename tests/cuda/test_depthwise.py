"""The depthwise kernels of `shadow_conv.cuda` against a plain fp64 convolution: run on the CPU thread by thread, as
emulator.h does it, and on a GPU where there is one."""

import ctypes
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.cuda.conftest import PLACES
from tests.cuda.emulation import library
from tests.native.test_conv_native import (
    Case,
    arguments_of,
    convolutions,
    dy_of,
    expected,
    mixed_table,
    plain_case,
)
from wat_kernels import Noise, TapTable, philox
from wat_kernels.dispatch import Call
from wat_kernels.extension import CUDA
from wat_kernels.ops.conv import cuda
from wat_kernels.ops.conv.schema import SIGNATURE

forward, backward = SIGNATURE.flat_forward(cuda.forward), SIGNATURE.flat_backward(cuda.backward)

NO_GPU = "no GPU that runs the CUDA library" if CUDA.available else CUDA.reason
HAS_GPU = CUDA.available and torch.cuda.is_available()
# of the sum of absolute values of what is added up, and of the result itself
TOLERANCES = {torch.float32: (4e-6, 2e-6), torch.bfloat16: (2e-5, 2**-7), torch.float16: (2e-5, 2**-10)}
MULTIPROCESSORS = 2  # of the emulated device: a few blocks, each with several tiles


@pytest.fixture(scope="module", params=PLACES)
def device(request):
    if request.param == "gpu":
        if not HAS_GPU:
            pytest.skip(NO_GPU)
        yield "cuda"
        return
    library("depthwise", torch_library=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "stream_of", lambda tensor: 0)
        patch.setattr(cuda, "multiprocessors", lambda device: MULTIPROCESSORS)
        yield "cpu"


@pytest.fixture
def emulated(device):
    if device != "cpu":
        pytest.skip("looks into the emulated launch")
    return library("depthwise", torch_library=True)


@contextmanager
def descending():
    """Threads run in the other order between two barriers: where a barrier is missing, results differ."""
    found = library("depthwise", torch_library=True)
    found.set_order(1)
    try:
        yield
    finally:
        found.set_order(0)


def last_launch():
    """taps, stride, channels of a block, tile rows, tile columns, parts, shared memory."""
    out = (ctypes.c_int64 * 7)()
    library("depthwise", torch_library=True).last_launch(out)
    return tuple(out)


def on(tensor, device):
    return None if tensor is None else tensor if device == "cpu" else tensor.to(device)


def compute(case, dy=None, device="cpu", mask=None):
    """[y] or, given dy, [y, dx, dweight, dbias, dgain]; what is absent is None."""
    x, weight, bias, gain = (on(tensor, device) for tensor in (case.x, case.weight, case.bias, case.gain))
    arguments = [on(value, device) if isinstance(value, torch.Tensor) else value for value in arguments_of(case)]
    y = forward(x, weight, bias, gain, *arguments)
    if dy is None:
        return [y.cpu()]
    mask = mask or [True, True, bias is not None, gain is not None]
    grads = backward(on(dy, device), x, weight, gain, *arguments, mask)
    return [y.cpu(), *(grad.cpu() if wanted else None for grad, wanted in zip(grads, mask, strict=True))]


def check(case, device="cpu"):
    dy = dy_of(case, compute(case, device=device)[0])
    found = compute(case, dy, device)
    of_sum, of_result = TOLERANCES[case.x.dtype]
    names = ("y", "dx", "dweight", "dbias", "dgain")
    for name, got, right, size in zip(names, found, expected(case, dy), expected(case, dy, True), strict=True):
        if right is None:
            assert got is None
            continue
        assert got.shape == right.shape, name
        difference = (got.double() - right).abs()
        allowed = of_sum * size + of_result * right.abs() + 1e-30 + (6e-8 if case.x.dtype == torch.float16 else 0)
        assert bool((difference <= allowed).all()), (
            f"{name}: {int((~(difference <= allowed)).sum())} of {got.numel()} differ, up to {float((difference / allowed).max())}"
        )
    return found


@st.composite
def cases(draw, common):
    """common: square kernels and one stride, those of the fast kernels; else anything."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    if common:
        kernel = (draw(st.sampled_from([3, 3, 5, 7])),) * 2
        stride = (draw(st.sampled_from([1, 1, 2])),) * 2
        dilation = (draw(st.sampled_from([1, 1, 1, 2, 3])),) * 2
    else:
        kernel = (draw(st.integers(1, 8)), draw(st.integers(1, 8)))
        stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, 4)) for _ in range(4))
    shadows = draw(st.sampled_from([1, 1, 2, 3]))
    batch = shadows * draw(st.sampled_from([0, 1, 1, 2]))
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [
        max(1, span[axis] - padding[2 * axis] - padding[2 * axis + 1] + draw(st.integers(0, 19))) for axis in (0, 1)
    ]
    channels = draw(st.sampled_from([1, 2, 3, 7, 8, 9, 16, 24, 33, 40, 72]))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    both = [dtype, torch.float32]
    arguments = draw(convolutions(normal(batch, channels, *size), normal(channels, 1, *kernel), both, both, generator))
    return Case(*arguments, shadows, stride, padding, dilation, channels)


hypothesis_settings = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


@given(case=cases(common=True))
@settings(max_examples=examples(1200), **hypothesis_settings)
def test_common_shapes(device, case):
    check(case, device)


@given(case=cases(common=False))
@settings(max_examples=examples(120), **hypothesis_settings)
def test_any_shape(device, case):
    check(case, device)


@given(case=cases(common=True))
@settings(max_examples=40, **hypothesis_settings)
def test_no_barrier_is_missing(emulated, case):
    """The same bits with the threads between two barriers in the other order."""
    dy = dy_of(case, compute(case)[0])
    found = compute(case, dy)
    with descending():
        again = compute(case, dy)
    assert all(one is other is None or torch.equal(one, other) for one, other in zip(found, again, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("common", [True, False])
def test_long_random_shapes(device, common):
    @given(case=cases(common=common))
    @settings(max_examples=1500, **{**hypothesis_settings, "derandomize": False})
    def run(case):
        check(case, device)

    run()


def translations(size):
    """All shifts by up to one tap of a size x size kernel: some taps of every row are empty."""
    maps = torch.zeros(9, size, size, size, size)
    for row in range(9):
        for r in range(size):
            for s in range(size):
                from_r, from_s = r + row // 3 - 1, s + row % 3 - 1
                if 0 <= from_r < size and 0 <= from_s < size:
                    maps[row, r, s, from_r, from_s] = 1.0
    return TapTable(maps.view(9, size * size, size * size), [1 / 9] * 9, (size, size))


# x, kernel, stride, taps and stride of the kernel that runs forward and for dx
INSTANCES = [
    ((2, 72, 17, 19), 3, 1, (3, 1), (3, 1)),
    ((2, 72, 17, 19), 3, 2, (3, 2), (3, 1)),
    ((2, 24, 23, 18), 5, 1, (5, 1), (5, 1)),
    ((2, 24, 23, 18), 5, 2, (5, 2), (3, 1)),
    ((2, 16, 15, 21), 7, 1, (7, 1), (7, 1)),
    ((2, 16, 15, 21), 7, 2, (7, 2), (5, 1)),
    ((2, 3, 20, 11), 9, 2, (0, 0), (5, 1)),
    ((2, 3, 20, 11), 9, 1, (0, 0), (0, 0)),
    ((1, 130, 7, 7), 3, 1, (3, 1), (3, 1)),
    ((3, 8, 1, 1), 3, 1, (3, 1), (3, 1)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_every_kernel(device, instance, form, dtype):
    shape, size, stride, forward, backward = instance
    channels = shape[1]
    torch.manual_seed(1)
    case = plain_case(torch.randn(shape).to(dtype).contiguous(memory_format=form), torch.randn(channels, 1, size, size).to(dtype),
                      translations(size), padding=(size // 2,) * 4, stride=(stride, stride), groups=channels,
                      gain=torch.randn(channels), bias=torch.randn(channels).to(dtype), noise=Noise("dropconnect", 0.3))  # fmt: skip
    y, dx = check(case, device)[:2]
    if shape[2:] != (1, 1):
        assert y.is_contiguous(memory_format=form) and dx.is_contiguous(memory_format=form)
    if device == "cpu":
        compute(case)
        assert last_launch()[:2] == forward
        dy = torch.ones_like(y).contiguous(memory_format=form)
        compute(case, dy, mask=[True, False, False, False])
        assert last_launch()[:2] == backward


LARGE = [
    # x, kernel, stride, dilation: channels in several blocks, bands of a wide plane, many tiles, a far reach, long lines
    ((2, 300, 9, 8), (3, 3), 1, 1),
    ((1, 4, 90, 120), (5, 5), 1, 1),
    ((1, 72, 40, 33), (7, 7), 2, 1),
    ((1, 8, 64, 64), (3, 3), 1, 9),
    ((2, 6, 30, 40), (3, 3), 1, 8),
    ((1, 10, 20, 21), (19, 17), 1, 1),
    ((1, 5, 1, 3000), (1, 5), 1, 1),
]


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("large", LARGE, ids=str)
def test_large_shapes(device, large, form):
    shape, kernel, stride, dilation = large
    channels, reach = shape[1], [dilation * (k - 1) // 2 for k in kernel]
    case = plain_case(torch.randn(shape).contiguous(memory_format=form), torch.randn(channels, 1, *kernel),
                      padding=(reach[0], reach[0] + 1, reach[1], reach[1]), stride=(stride, stride), dilation=(dilation, dilation),
                      groups=channels, noise=Noise("multiplicative", 0.3), gain=torch.randn(channels), bias=torch.randn(channels))  # fmt: skip
    check(case, device)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_repeat_runs_are_equal_bit_for_bit(device, form):
    """Parts of the weight gradient are added up in their order, whichever is last."""
    case = plain_case(torch.randn(12, 8, 13, 12).contiguous(memory_format=form), torch.randn(8, 1, 3, 3), mixed_table(9),
                      bias=torch.randn(8), gain=torch.randn(8), shadows=3, noise=Noise("multiplicative", 0.1), groups=8)  # fmt: skip
    dy = dy_of(case, compute(case, device=device)[0])
    first = compute(case, dy, device)
    if device == "cpu":
        assert last_launch()[5] > 2  # several parts, in groups
    for _ in range(3):
        assert all(torch.equal(one, other) for one, other in zip(first, compute(case, dy, device), strict=True))


def test_scratch_does_not_grow_with_the_weight(emulated):
    for channels in (64, 640, 2560):
        case = plain_case(torch.randn(1, channels, 3, 3).contiguous(memory_format=torch.channels_last),
                          torch.randn(channels, 1, 3, 3), groups=channels)  # fmt: skip
        compute(case, torch.ones(1, channels, 3, 3).contiguous(memory_format=torch.channels_last))
        parts = last_launch()[5]
        assert parts == 1 or parts * channels <= 64 * 3 * MULTIPROCESSORS


def test_masks_bit_for_bit(device):
    channels, amount, key = 70, 0.37, 99
    mask = philox.keep_mask(torch.tensor(key), 1, channels * 6, amount).view(channels, 2, 3)
    case = plain_case(torch.ones(1, channels, 1, 1), torch.ones(channels, 1, 2, 3), key=key, noise=Noise("dropconnect", amount),
                      padding=(1, 1, 2, 2), groups=channels)  # fmt: skip
    assert torch.equal(compute(case, device=device)[0][0].flip(1, 2) != 0, mask)


def test_rows_are_drawn_as_philox_draws_them(device):
    """Row r multiplies by r + 1: the output names the row of each shadow. More rows than a block has threads."""
    rows, shadows = 300, 40
    table = TapTable(torch.arange(1.0, rows + 1).view(rows, 1, 1), [1 / rows] * rows)
    for key in (0, -1, 2**62 + 12345):
        case = plain_case(torch.ones(shadows, 1, 1, 1), torch.ones(1, 1, 1, 1), table, key=key, shadows=shadows,
                          padding=(0, 0, 0, 0))  # fmt: skip
        word = philox.row_words(torch.tensor(key), shadows)[0]
        right = (table.on(torch.device("cpu")).thresholds[:, None] <= word).sum(0)
        assert torch.equal(compute(case, device=device)[0].flatten().long() - 1, right)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [3, 9])
def test_nan_propagates_through_active_taps_only(device, form, size):
    """One active tap, left of the middle: y[h, w] sees x[h, w - 1] alone."""
    middle = size * size // 2
    maps = torch.zeros(1, size * size, size * size)
    maps[0, middle - 1, middle] = 1.0
    x = torch.randn(2, 33, 6, 7).contiguous(memory_format=form)
    x[0, 5, 2, 3] = math.nan
    weight = torch.randn(33, 1, size, size)
    weight[7, 0, 0, 0] = math.nan  # no output reads it
    case = plain_case(x, weight, TapTable(maps, [1.0]), groups=33, padding=(size // 2,) * 4)
    y, dx, dweight = compute(case, torch.ones(2, 33, 6, 7).contiguous(memory_format=form), device)[:3]
    assert y.isnan().nonzero().tolist() == [[0, 5, 2, 4]]
    assert dx.isfinite().all()
    assert dweight.isnan().nonzero().tolist() == [[5, 0, size // 2, size // 2]]
    assert torch.equal(dweight[:, 0, 0, 0], torch.zeros(33))


@pytest.mark.parametrize("mask", [[True, False, False, False], [False, True, False, False], [False, False, True, False],
                                  [False, False, False, True], [False, False, False, False]], ids=str)  # fmt: skip
def test_only_what_is_asked_for(device, mask):
    case = plain_case(torch.randn(2, 9, 6, 6), torch.randn(9, 1, 3, 3), gain=torch.randn(9), groups=9)
    dy = torch.randn(2, 9, 6, 6)
    everything, some = (compute(case, dy, device, m) for m in ([True] * 4, mask))
    for wanted, got, right in zip(mask, some[1:], everything[1:], strict=True):
        assert torch.equal(got, right) if wanted else got is None


def test_wrong_tables_are_refused(device):
    case = plain_case(torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3), groups=2)
    with pytest.raises(RuntimeError, match="another kernel size"):
        compute(replace(case, weight=torch.randn(2, 1, 2, 2)), device=device)


def test_supports_names_the_reason(monkeypatch):
    monkeypatch.setattr(cuda, "refusal", lambda call: "")
    assert cuda.supports(Call("cuda", torch.float16, (3, 3), 32, 32, 32))[0]
    assert "32 channels to 64 in 32 groups" in cuda.supports(Call("cuda", torch.float16, (3, 3), 32, 64, 32))[1]
    assert "up to 1024 taps" in cuda.supports(Call("cuda", torch.float16, (33, 33), 32, 32, 32))[1]
    assert not cuda.supports(Call("cuda", torch.float16, (3, 3), 32, 32, 1))[0]
