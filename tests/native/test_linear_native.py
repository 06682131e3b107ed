"""`shadow_linear.native` against a plain fp64 product with a materialised SW, for each instruction set it has."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.native.test_conv2d_native import isa, tolerance  # noqa: F401  (a fixture)
from wat_kernels import MatrixGrid, Noise, philox
from wat_kernels.extension import NATIVE
from wat_kernels.matrix_grid import draw_matrix_grid

pytestmark = pytest.mark.skipif(not NATIVE.available, reason=NATIVE.reason)

NOISES = [None, None, Noise("dropconnect", 0.3), Noise("multiplicative", 0.2)]


@dataclass
class Case:
    x: torch.Tensor  # (rows, in)
    weight: torch.Tensor  # (out, in)
    bias: torch.Tensor | None = None
    gain: torch.Tensor | None = None
    grid: MatrixGrid | None = None
    key: int = 7
    noise: Noise | None = None
    shadows: int = 1
    dy_layout: str = "contiguous"

    def __repr__(self):
        return (f"Case(x={tuple(self.x.shape)}/{self.x.stride()}, weight={tuple(self.weight.shape)}/{self.weight.stride()}, "
                f"{self.x.dtype}, gain={self.gain is not None and self.gain.shape}, bias={self.bias is not None}, "
                f"grid={self.grid is not None and self.grid.rows.tolist()}, key={self.key}, {self.noise}, S={self.shadows})")  # fmt: skip


def layout(tensor, kind):
    """The same numbers in another place."""
    if kind == "transposed":
        return tensor.t().contiguous().t()
    if kind == "strided":
        larger = torch.full((2 * tensor.shape[0] + 1, tensor.shape[1] + 3), math.nan, dtype=tensor.dtype)
        view = larger[1::2, 2:-1]
        view.copy_(tensor)
        return view
    if kind == "offset":
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    return tensor


LAYOUTS = st.sampled_from(["contiguous", "contiguous", "transposed", "strided", "offset"])
SIZES = st.one_of(
    st.integers(1, 130), st.sampled_from([0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 255, 257, 300, 520])
)


@st.composite
def cases(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    inputs, outputs = max(1, draw(SIZES)), max(1, draw(SIZES))
    shadows = draw(st.sampled_from([1, 1, 2, 3]))
    rows = shadows * draw(st.sampled_from([0, 1, 2, 7, 13, 14, 16, 29, 65, 100, 270]))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16]))
    gain = draw(st.sampled_from([None, (), (1,), (outputs,)]))
    grid = None
    if draw(st.booleans()):
        most = draw(st.sampled_from([0, 3 << 16, 40 << 16, 200 << 16]))
        flips = st.integers(0, 1)
        lines = [[draw(flips), draw(flips), most, most // 2] for _ in range(draw(st.integers(1, 3)))]
        grid = MatrixGrid(lines, [1 / len(lines)] * len(lines))

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    return Case(
        layout(normal(rows, inputs), draw(LAYOUTS)),
        layout(normal(outputs, inputs), draw(LAYOUTS)),
        normal(outputs) if draw(st.booleans()) else None,
        None if gain is None else normal(*gain).to(draw(st.sampled_from([dtype, torch.float32]))),
        grid,
        draw(st.integers(-(2**63), 2**63 - 1)),
        draw(st.sampled_from(NOISES)),
        shadows,
        draw(LAYOUTS),
    )  # fmt: skip


def arguments_of(case):
    code, amount = (0, 0.0) if case.noise is None else (case.noise.code, case.noise.amount)
    grid = (None, None) if case.grid is None else case.grid.on(torch.device("cpu"))
    return (torch.tensor(case.key), *grid, case.shadows, code, amount)


def native(case, dy=None):
    """[y] or, given dy, [y, dx, dweight, dbias, dgain]; what is absent is None."""
    arguments = arguments_of(case)
    y = torch.ops.wat_kernels.shadow_linear.native(case.x, case.weight, case.bias, case.gain, *arguments)
    if dy is None:
        return [y]
    mask = [True, True, case.bias is not None, case.gain is not None]
    grads = torch.ops.wat_kernels.shadow_linear_bwd.native(dy, case.x, case.weight, case.gain, *arguments, mask)
    return [y, *(grad if wanted else None for grad, wanted in zip(grads, mask, strict=True))]


def noise_factor(case):
    """(S, out, in) fp64, from philox.py alone."""
    key, shape = torch.tensor(case.key), (case.shadows, *case.weight.shape)
    if case.noise.kind == "dropconnect":
        kept = philox.keep_mask(key, case.shadows, case.weight.numel(), case.noise.amount)
        return (kept.double() / (1 - case.noise.amount)).view(shape)
    return (1 + case.noise.amount * philox.standard_normal(key, case.shadows, case.weight.numel()).double()).view(shape)


def moved(weight, case):
    """[(out, in)] for each shadow: the weight shifted, then flipped, one index at a time."""
    if case.grid is None:
        return [weight] * case.shadows
    draws = draw_matrix_grid(*case.grid.on(torch.device("cpu")), torch.tensor(case.key), case.shadows)
    result = []
    for flip_out, flip_in, shift_out, shift_in in torch.stack(draws, 1).tolist():
        image = weight
        for axis, shift in ((0, shift_out), (1, shift_in)):
            size = image.shape[axis]
            source = torch.arange(size) - shift
            inside = ((source >= 0) & (source < size)).view(-1, 1) if axis == 0 else (source >= 0) & (source < size)
            image = image.index_select(axis, source.clamp(0, size - 1)) * inside
        result.append(image.flip([axis for axis, flip in enumerate((flip_out, flip_in)) if flip]))
    return result


def oracle(case, leaves, absolute=False):
    x, weight, bias, gain = leaves
    factor = torch.ones(case.shadows, *weight.shape).double() if case.noise is None else noise_factor(case)
    factor = factor.abs() if absolute else factor
    chunks = x.chunk(case.shadows) if len(x) else [x]
    y = torch.cat([chunk @ (w * f).mT for chunk, w, f in zip(chunks, moved(weight, case), factor, strict=False)])
    y = y if gain is None else y * gain
    return y if bias is None else y + bias


def expected(case, dy, absolute=False):
    def prepare(tensor):
        if tensor is None:
            return None
        tensor = tensor.detach().double()
        return (tensor.abs() if absolute else tensor).requires_grad_()

    leaves = [prepare(tensor) for tensor in (case.x, case.weight, case.bias, case.gain)]
    y = oracle(case, leaves, absolute)
    dy = dy.double().abs() if absolute else dy.double()
    grads = iter(torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy))
    return [y.detach(), *(None if leaf is None else next(grads) for leaf in leaves)]


def dy_of(case):
    shape = (len(case.x), len(case.weight))
    return layout(torch.cos(torch.arange(math.prod(shape)).float() * 1.7).view(shape).to(case.x.dtype), case.dy_layout)


def check(case):
    dy = dy_of(case)
    results = native(case, dy)
    of_sum, of_result = tolerance(case)
    names = ("y", "dx", "dweight", "dbias", "dgain")
    for name, got, right, size in zip(names, results, expected(case, dy), expected(case, dy, True), strict=True):
        if right is None:
            assert got is None
            continue
        assert got.shape == right.shape, name
        difference = (got.double() - right).abs()
        allowed = of_sum * size + of_result * right.abs() + 1e-30
        assert bool((difference <= allowed).all()), (
            f"{name}: {int((difference > allowed).sum())} of {got.numel()} differ, by up to {float((difference / allowed).max())}"
        )


hypothesis_settings = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


@given(case=cases())
@settings(max_examples=300, **hypothesis_settings)
def test_equals_a_product_with_the_materialised_weight(case):
    check(case)


@given(case=cases())
@settings(max_examples=60, **hypothesis_settings)
def test_every_instruction_set(isa, case):  # noqa: F811
    check(case)


@pytest.mark.long
@given(case=cases())
@settings(max_examples=5000, **{**hypothesis_settings, "derandomize": False})
def test_long_equals_a_product_with_the_materialised_weight(case):
    check(case)


SHAPES = [(16, 1024, 1100), (130, 2050, 70), (300, 1030, 600), (700, 48, 40), (1, 5000, 3), (40, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)  # rows, in, out
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_way_to_cut_the_weight(isa, shape, dtype):  # noqa: F811
    rows, inputs, outputs = shape
    for changes in ({}, {"gain": torch.randn(outputs)}, {"shadows": rows if rows < 100 else 2}):
        check(Case(torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype), noise=Noise("dropconnect", 0.3),
                   **changes))  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bit_identical_for_any_number_of_threads_and_from_run_to_run(shape, dtype):
    rows, inputs, outputs = shape
    case = Case(
        torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype), noise=Noise("multiplicative", 0.1)
    )
    grid = MatrixGrid([[1, 0, 3 << 16, 5 << 16], [0, 1, 0, 9 << 16]], [0.5, 0.5])
    some = 2 if rows % 2 == 0 else 1
    threads = torch.get_num_threads()
    for variant in (case, replace(case, gain=torch.randn(outputs), bias=torch.randn(outputs).to(dtype)),
                    replace(case, grid=grid, shadows=some), replace(case, grid=grid, gain=torch.randn(()), shadows=some)):  # fmt: skip
        results = []
        try:
            for count in (1, 2, 3, 8, 3, 1):
                torch.set_num_threads(count)
                results.append(native(variant, dy_of(variant)))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("shape", [(3, 5), (64, 64), (33, 130), (7, 1), (100, 257)], ids=str)
@pytest.mark.parametrize("amount", [0.3, 0.5, 1 / 3, 0.0, 1e-9, 2.5 / 65536], ids=str)
def test_masks_bit_for_bit(isa, shape, amount):  # noqa: F811
    """x is the identity and the weight ones: y is SW transposed, and so is the mask."""
    outputs, inputs = shape
    for key in (0, 99, -(2**40) - 3):
        mask = philox.keep_mask(torch.tensor(key), 1, outputs * inputs, amount).view(shape)
        y = native(Case(torch.eye(inputs), torch.ones(shape), key=key, noise=Noise("dropconnect", amount)))[0].mT
        assert torch.equal(y != 0, mask)
        assert torch.equal(y, mask.float() / (1 - amount))
        dy, x = torch.ones(1, outputs), torch.ones(1, inputs)  # dweight of ones is the mask as well
        dweight = native(Case(x, torch.ones(shape), key=key, noise=Noise("dropconnect", amount)), dy)[2]
        assert torch.equal(dweight, mask.float() / (1 - amount))


@pytest.mark.parametrize("shape", [(3, 5), (64, 64), (33, 130), (400, 513)], ids=str)
def test_gaussian_noise_within_a_few_ulp(isa, shape):  # noqa: F811
    """A standard deviation of 2**20 leaves nothing of the 1 in 1 + amount * z but rounding."""
    outputs, inputs = shape
    amount, key = 2.0**20, 123456789
    y = native(Case(torch.eye(inputs), torch.ones(shape), key=key, noise=Noise("multiplicative", amount)))[0].mT
    words = torch.stack(philox._noise_words(torch.tensor(key), 1, -(-outputs * inputs // 4)), dim=-1)[0]
    uniform, turn = ((words[:, 0::2] >> 8) + 1).double() / 2**24, (words[:, 1::2] >> 8).double() / 2**24
    radius, angle = torch.sqrt(-2 * torch.log(uniform)), turn * 2 * math.pi
    exact = torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten()[: outputs * inputs].view(shape)
    reference = philox.standard_normal(torch.tensor(key), 1, outputs * inputs).view(shape).double()
    z = y.double() / amount
    assert float((z - exact).abs().max()) < 4e-6  # |z| is below 6: one ulp there is 5e-7, and 1 / amount 1e-6
    assert float((z - reference).abs().max()) < 4e-6


def test_nan_and_infinity_propagate_through_what_is_multiplied(isa):  # noqa: F811
    x, weight = torch.randn(5, 40), torch.randn(30, 40)
    for value in (math.nan, math.inf):
        x_bad, weight_bad, dy = x.clone(), weight.clone(), torch.ones(5, 30)
        x_bad[2, 7] = value
        y, dx, dweight = native(Case(x_bad, weight), dy)[:3]
        assert not y[2].isfinite().any() and y[[0, 1, 3, 4]].isfinite().all()
        assert dx.isfinite().all() and not dweight[:, 7].isfinite().any() and dweight[:, :7].isfinite().all()
        weight_bad[3, 9] = value
        y, dx = native(Case(x, weight_bad), dy)[:2]
        assert not y[:, 3].isfinite().any() and y[:, 4:].isfinite().all()
        assert not dx[:, 9].isfinite().any() and dx[:, 10:].isfinite().all()


def test_what_a_shift_moves_outside_contributes_nothing(isa):  # noqa: F811
    """Inputs that no weight reaches may hold NaN, and outputs that none reaches are the bias."""
    grid = MatrixGrid([[0, 0, 6 << 16, 6 << 16]], [1.0])
    for key in range(20):
        draws = draw_matrix_grid(*grid.on(torch.device("cpu")), torch.tensor(key), 1)
        shift_out, shift_in = int(draws[2]), int(draws[3])
        x, bias = torch.randn(4, 20), torch.randn(18)
        if shift_in > 0:
            x[:, :shift_in] = math.nan
        elif shift_in < 0:
            x[:, shift_in:] = math.nan
        case = Case(x, torch.randn(18, 20), bias, grid=grid, key=key)
        y, dx = native(case, torch.ones(4, 18))[:2]
        assert y.isfinite().all() and dx.isfinite().all()
        outside = slice(0, shift_out) if shift_out > 0 else slice(18 + shift_out, 18)
        if shift_out != 0:
            assert torch.equal(y[:, outside], bias[outside].expand(4, -1))
        if shift_in > 0:
            assert torch.equal(dx[:, :shift_in], torch.zeros(4, shift_in))


def test_only_what_is_asked_for(isa):  # noqa: F811
    case = Case(torch.randn(33, 70), torch.randn(50, 70), gain=torch.randn(50), noise=Noise("dropconnect", 0.3))
    dy = dy_of(case)
    whole = torch.ops.wat_kernels.shadow_linear_bwd.native(
        dy, case.x, case.weight, case.gain, *arguments_of(case), [True] * 4
    )
    for bits in range(16):
        mask = [bool(bits >> i & 1) for i in range(4)]
        grads = torch.ops.wat_kernels.shadow_linear_bwd.native(
            dy, case.x, case.weight, case.gain, *arguments_of(case), mask
        )
        for wanted, got, right in zip(mask, grads, whole, strict=True):
            assert got.shape == (right.shape if wanted else (0,))
            assert not wanted or torch.allclose(got, right, rtol=1e-5, atol=1e-5)


def test_wrong_arguments_are_named():
    x, weight = torch.randn(4, 3), torch.randn(5, 3)
    with pytest.raises(RuntimeError, match="shadows=3"):
        native(Case(x, weight, shadows=3))
    with pytest.raises(RuntimeError, match="float32"):
        native(Case(x.double(), weight.double()))
    with pytest.raises(RuntimeError, match="gain"):
        native(Case(x, weight, gain=torch.ones(2)))
