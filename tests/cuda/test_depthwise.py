"""The depthwise kernels of `shadow_conv2d.cuda` against a plain fp64 convolution: run on the CPU thread by thread, as
emulator.h does it, and on a GPU where there is one."""

import ctypes
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cuda.emulation import library
from tests.native.test_conv2d_native import LAYOUTS, NOISES, Case, arguments_of, dy_of, expected, layout, mixed_table
from tests.native.test_conv2d_native import plain_case, tables
from wat_kernels import Noise, TapTable, philox
from wat_kernels.extension import CUDA
from wat_kernels.ops.conv2d import cuda

NO_GPU = "no GPU that runs the CUDA library" if CUDA.available else CUDA.reason
HAS_GPU = CUDA.available and torch.cuda.is_available()
# of the sum of absolute values of what is added up, and of the result itself
TOLERANCES = {torch.float32: (4e-6, 2e-6), torch.bfloat16: (2e-5, 2**-7), torch.float16: (2e-5, 2**-10)}
MULTIPROCESSORS = 2  # of the emulated device: a few blocks, each with several tiles


@pytest.fixture(scope="module", params=["emulated", "gpu"])
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
    y = cuda._fwd(x, weight, bias, gain, *arguments)
    if dy is None:
        return [y.cpu()]
    mask = mask or [True, True, bias is not None, gain is not None]
    grads = cuda._bwd(on(dy, device), x, weight, gain, *arguments, mask)
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

    gain = draw(st.sampled_from([None, (), (1,), (channels,)]))
    return Case(
        layout(normal(batch, channels, *size), draw(st.sampled_from(LAYOUTS))),
        layout(normal(channels, 1, *kernel), draw(st.sampled_from(["contiguous", "channels_last", "strided", "offset"]))),
        normal(channels).to(draw(st.sampled_from([dtype, torch.float32]))) if draw(st.booleans()) else None,
        None if gain is None else normal(*gain).to(draw(st.sampled_from([dtype, torch.float32]))),
        draw(st.booleans()),
        draw(tables(kernel, generator)),
        draw(st.integers(-(2**63), 2**63 - 1)),
        draw(st.sampled_from(NOISES)),
        shadows,
        stride,
        padding,
        dilation,
        channels,
    )  # fmt: skip


hypothesis_settings = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


@given(case=cases(common=True))
@settings(max_examples=60, **hypothesis_settings)
def test_common_shapes(device, case):
    check(case, device)


@given(case=cases(common=False))
@settings(max_examples=30, **hypothesis_settings)
def test_any_shape(device, case):
    check(case, device)
