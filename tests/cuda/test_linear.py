"""`shadow_linear.cuda` against a plain fp64 product: every argument, on odd sizes, emulated and on a GPU alike."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.cuda.emulation import library
from tests.native.test_linear_native import Case, arguments_of, dy_of, expected, layout
from wat_kernels import MatrixGrid, Noise, philox, shadow_linear
from wat_kernels.ops.linear import cuda
from wat_kernels.ops.linear.schema import SIGNATURE

forward, backward = SIGNATURE.flat_forward(cuda.forward), SIGNATURE.flat_backward(cuda.backward)

# difference <= of_sum * (the same sum of absolute values) + of_result * |result| + least; fp16 numbers are 6e-8 apart
TOLERANCES = {
    torch.float32: (2e-6, 0.0, 1e-30),
    torch.float16: (1.5e-3, 1e-3, 3e-7),
    torch.bfloat16: (1.2e-2, 8e-3, 1e-30),
}
NOISES = [None, Noise("dropconnect", 0.3), Noise("multiplicative", 0.2)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "contiguous", "transposed", "strided", "offset"]
GRID = MatrixGrid(
    [[0, 0, 30 << 16, 40 << 16], [1, 0, 0, 20 << 16], [0, 1, 9 << 16, 0], [1, 1, 7 << 16, 50 << 16]], [0.25] * 4
)


def on(device, case):
    """The case with its tensors on `device`, in the layouts they have."""

    def move(tensor):
        if tensor is None or device == "cpu":
            return tensor
        moved = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        return moved.copy_(tensor)

    return replace(case, x=move(case.x), weight=move(case.weight), bias=move(case.bias), gain=move(case.gain))


def run(device, case, dy, mask=None):
    """[y, dx, dweight, dbias, dgain] on the CPU; what is absent is None."""
    mask = mask or [True, True, case.bias is not None, case.gain is not None]
    there = on(device, case)
    key, thresholds, grid, *rest = arguments_of(case)
    draw = tuple(None if t is None else t.to(device) for t in (key, thresholds, grid))
    y = forward(there.x, there.weight, there.bias, there.gain, *draw, *rest)
    grads = backward(dy.to(device), there.x, there.weight, there.gain, *draw, *rest, mask)
    return [y.cpu(), *(grad.cpu() if wanted else None for grad, wanted in zip(grads, mask, strict=True))]


def check(device, case):
    dy = dy_of(case)
    of_sum, of_result, least = TOLERANCES[case.x.dtype]
    names = ("y", "dx", "dweight", "dbias", "dgain")
    results = zip(names, run(device, case, dy), expected(case, dy), expected(case, dy, True), strict=True)
    for name, got, right, size in results:
        if right is None:
            assert got is None
            continue
        assert got.shape == right.shape, name
        difference, allowed = (got.double() - right).abs(), of_sum * size + of_result * right.abs() + least
        assert bool((difference <= allowed).all()), (
            f"{name}: up to {float((difference / allowed).max())} of the allowed"
        )


def tensor(generator, dtype, *shape, kind="contiguous"):
    return layout(torch.randn(shape, generator=generator).to(dtype), kind)


@st.composite
def cases(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    sizes = st.sampled_from([1, 3, 8, 16, 17, 31, 40, 64, 65, 130])
    inputs, outputs = draw(sizes), draw(sizes)
    shadows = draw(st.sampled_from([1, 1, 2, 3, 5]))
    rows = shadows * draw(st.sampled_from([0, 1, 2, 4, 7, 8, 12]))
    dtype = draw(st.sampled_from(DTYPES))
    gain = draw(st.sampled_from([None, (), (1,), (outputs,)]))
    grid = None
    if draw(st.booleans()):
        most = draw(st.sampled_from([0, 3 << 16, 40 << 16, 200 << 16]))
        flips = st.integers(0, 1)
        lines = [[draw(flips), draw(flips), most, most // 2] for _ in range(draw(st.integers(1, 3)))]
        grid = MatrixGrid(lines, [1 / len(lines)] * len(lines))
    return Case(
        tensor(generator, dtype, rows, inputs, kind=draw(st.sampled_from(LAYOUTS))),
        tensor(generator, dtype, outputs, inputs, kind=draw(st.sampled_from(LAYOUTS))),
        tensor(generator, dtype, outputs) if draw(st.booleans()) else None,
        None if gain is None else tensor(generator, draw(st.sampled_from([dtype, torch.float32])), *gain),
        grid,
        draw(st.integers(-(2**63), 2**63 - 1)),
        draw(st.sampled_from(NOISES)),
        shadows,
        draw(st.sampled_from(LAYOUTS)),
    )


SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


@given(case=cases())
@settings(max_examples=examples(80), **SETTINGS)
def test_random_arguments(device, case):
    check(device, case)


@pytest.mark.long
@given(case=cases())
@settings(max_examples=1500, **{**SETTINGS, "derandomize": False})
def test_long_random_arguments(device, case):
    check(device, case)


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "shadows"), [(1, 528, 40, 1), (24, 300, 137, 3), (64, 136, 72, 1), (33, 40, 70, 11)]
)
def test_every_kernel(device, rows, inputs, outputs, shadows, dtype, noise):
    """More steps than warps, more blocks than one, and each number of rows for which there is a kernel of its own."""
    generator = torch.Generator().manual_seed(rows)
    check(device, Case(tensor(generator, dtype, rows, inputs), tensor(generator, dtype, outputs, inputs),
                       tensor(generator, dtype, outputs), torch.rand(outputs), None, 11, noise, shadows))  # fmt: skip


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_moved_matrix(device, dtype, noise):
    generator = torch.Generator().manual_seed(1)
    for key in range(3):
        check(device, Case(tensor(generator, dtype, 9, 75), tensor(generator, dtype, 67, 75), None, torch.rand(67), GRID,
                           key, noise, 3))  # fmt: skip


@pytest.mark.parametrize("outputs", [200, 1100])
def test_a_data_gradient_in_parts(device, outputs):
    """Few input features and many output features are cut into parts, which a second kernel adds up."""
    assert cuda.splits_of(outputs, 24, 132) == min(8, -(-outputs // 128)) > 1
    generator = torch.Generator().manual_seed(2)
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = tensor(generator, dtype, 3, 24), tensor(generator, dtype, outputs, 24)
        check(device, Case(x, weight, noise=NOISES[1]))


@pytest.mark.parametrize(
    ("blocks", "out", "parts"), [(1, 64, 1), (1, 129, 2), (64, 4096, 4), (1000, 4096, 1), (1, 10**6, 8)]
)
def test_parts_fill_the_device_and_are_bounded(blocks, out, parts):
    assert cuda.splits_of(out, 64 * blocks, 132) == parts


@pytest.mark.parametrize("shape", [(3, 5), (33, 64), (20, 130)], ids=str)  # out, in
@pytest.mark.parametrize("amount", [0.3, 1 / 3, 0.0, 2.5 / 65536], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_masks_bit_for_bit(device, shape, amount, dtype):
    """The weight is ones: y of unit vectors is SW, dx of unit vectors too, and dweight of ones is the mask."""
    outputs, inputs = shape
    mask = philox.keep_mask(torch.tensor(99), 1, outputs * inputs, amount).view(shape)
    plain = Case(
        torch.eye(inputs)[:64].to(dtype), torch.ones(shape).to(dtype), key=99, noise=Noise("dropconnect", amount)
    )
    y = run(device, plain, torch.ones(len(plain.x), outputs).to(dtype), [False] * 4)[0]
    kept = (mask.float() / (1 - amount)).to(dtype)
    assert torch.equal(y, kept.mT[:64])
    ones = replace(plain, x=torch.ones(outputs, inputs).to(dtype))
    dx = run(device, ones, torch.eye(outputs).to(dtype), [True, False, False, False])[1]
    assert torch.equal(dx, kept)
    one = replace(plain, x=torch.ones(1, inputs).to(dtype))
    dweight = run(device, one, torch.ones(1, outputs).to(dtype), [False, True, False, False])[2]
    assert torch.equal(dweight, kept)


def test_shadows_have_noise_of_their_own(device):
    shape, shadows = (20, 40), 6
    mask = philox.keep_mask(torch.tensor(5), shadows, math.prod(shape), 0.5).view(shadows, *shape)
    case = Case(torch.ones(shadows, 40), torch.ones(shape), key=5, noise=Noise("dropconnect", 0.5), shadows=shadows)
    y, dx, dweight = run(device, case, torch.ones(shadows, 20))[:3]
    assert torch.equal(y, 2.0 * mask.sum(2))
    assert torch.equal(dx, 2.0 * mask.sum(1))
    assert torch.equal(dweight, 2.0 * mask.sum(0))


def test_only_what_is_asked_for(device):
    generator = torch.Generator().manual_seed(3)
    case = Case(tensor(generator, torch.float32, 5, 70), tensor(generator, torch.float32, 50, 70), gain=torch.randn(50),
                noise=NOISES[1])  # fmt: skip
    dy = dy_of(case)
    whole = run(device, case, dy, [True] * 4)[1:]
    for bits in range(16):
        mask = [bool(bits >> i & 1) for i in range(4)]
        for wanted, got, right in zip(mask, run(device, case, dy, mask)[1:], whole, strict=True):
            assert (got is None) != wanted and (got is None or torch.equal(got, right))


def test_the_same_in_each_run_and_each_order_of_threads(device):
    """Results do not depend on which thread comes first: no barrier is missing, and no sum is left to chance."""
    generator = torch.Generator().manual_seed(4)
    for dtype, rows, grid in ((torch.bfloat16, 40, None), (torch.float32, 6, GRID), (torch.float16, 20, GRID)):
        case = Case(tensor(generator, dtype, rows, 150), tensor(generator, dtype, 270, 150), gain=torch.rand(270), grid=grid,
                    noise=NOISES[1], shadows=2)  # fmt: skip
        results = []
        try:
            for order in (0, 1):
                if device == "cpu":
                    library("linear", torch_library=True).set_order(order)
                results.append(run(device, case, dy_of(case), [True, True, False, True]))
        finally:
            if device == "cpu":
                library("linear", torch_library=True).set_order(0)
        for one, other in zip(*results, strict=True):
            assert one is other is None or torch.equal(one, other)


def test_nothing_outside_is_written(device):
    """dweight, dx and y lie in the middle of larger memory, whose rest must stay what it was."""
    generator = torch.Generator().manual_seed(5)
    case = on(device, Case(tensor(generator, torch.float16, 7, 45), tensor(generator, torch.float16, 30, 45)))
    dy = dy_of(case).to(device)
    draw = (torch.tensor(1, device=device), None, None, 1, 2, 0.3)
    ops, stream = torch.ops.wat_kernels, cuda.stream_of(case.x)
    for rows, columns, launch in [
        (7, 30, lambda out: ops.cuda_linear_forward(case.x, case.weight, None, None, *draw, out, stream)),
        (7, 45, lambda out: ops.cuda_linear_backward_data(dy, case.weight, None, *draw, out, None, stream)),
        (30, 45, lambda out: ops.cuda_linear_backward_weight(dy, case.x, None, *draw, out, stream)),
    ]:
        for padding in (3, 8):
            larger = torch.full((rows + 2, columns + 2 * padding), 7.0, dtype=torch.float16, device=device)
            larger[1:-1, padding:-padding] = math.nan
            launch(larger[1:-1, padding:-padding])
            assert larger[1:-1, padding:-padding].isfinite().all()
            larger[1:-1, padding:-padding] = 7.0
            assert (larger == 7.0).all()


def test_wrong_arguments_are_named(device):
    x, weight = torch.randn(4, 3, device=device), torch.randn(5, 3, device=device)
    draw = (torch.tensor(1, device=device), None, None)
    with pytest.raises(RuntimeError, match="shadows=3 does not divide the 4 rows"):
        forward(x, weight, None, None, *draw, 3, 0, 0.0)
    with pytest.raises(RuntimeError, match="65 rows; accepted are at most 64"):
        forward(torch.randn(65, 3, device=device), weight, None, None, *draw, 1, 0, 0.0)
    with pytest.raises(RuntimeError, match="accepted are float32"):
        forward(x.double(), weight.double(), None, None, *draw, 1, 0, 0.0)
    with pytest.raises(RuntimeError, match="gain has 2 elements"):
        forward(x, weight, None, torch.ones(2, device=device), *draw, 1, 0, 0.0)


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@gpu
def test_through_autograd_and_torch_compile():
    leaves = [torch.randn(shape, device="cuda", requires_grad=True) for shape in ((6, 40), (30, 40), (30,), (30,))]
    for backend in ("reference", "cuda"):
        x, weight, bias, gain = leaves

        def layer(key, backend=backend):
            return shadow_linear(x, weight, bias, gain=gain, key=key, noise=NOISES[2], shadows=2, backend=backend)  # noqa: B023

        key = torch.tensor(8, device="cuda")
        for function in (layer, torch.compile(layer, fullgraph=True)):
            y = function(key)
            results = (y, *torch.autograd.grad(y.square().sum(), leaves))
            if backend == "reference" and function is layer:
                right = results
            torch.testing.assert_close(results, right, rtol=1e-4, atol=1e-4)


@gpu
def test_a_replayed_graph_draws_afresh():
    x, weight = torch.randn(4, 256, device="cuda"), torch.randn(128, 256, device="cuda")
    key = torch.zeros((), dtype=torch.int64, device="cuda")

    def call():
        return shadow_linear(x, weight, key=key, noise=NOISES[1], backend="cuda")

    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call()
    for value in (1, 2):
        key.fill_(value)
        graph.replay()
        torch.testing.assert_close(y, shadow_linear(x, weight, key=value, noise=NOISES[1], backend="reference"),
                                   rtol=1e-4, atol=1e-4)  # fmt: skip


@gpu
def test_offsets_beyond_2_to_the_31():
    weight = torch.zeros(2**19 + 3, 2**13, dtype=torch.float16, device="cuda")
    weight[-3:] = 1
    x = torch.ones(1, 2**13, dtype=torch.float16, device="cuda")
    mask = shadow_linear(x, weight, key=3, noise=NOISES[1], backend="cuda")[0, -3:].float() * 0.7
    blocks = torch.arange(len(weight) * 2**10 - 3 * 2**10, len(weight) * 2**10)
    words = philox.philox4x32(
        (blocks & 0xFFFFFFFF, blocks >> 32, torch.tensor(0), torch.tensor(1)), philox.split_key(torch.tensor(3))
    )
    halves = torch.stack([part for word in words for part in (word & 0xFFFF, word >> 16)], -1).view(3, -1)
    torch.testing.assert_close(mask.cpu(), (halves >= round(65536 * 0.3)).sum(1).float(), rtol=2e-3, atol=0)
