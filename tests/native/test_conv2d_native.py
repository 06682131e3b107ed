"""`shadow_conv2d.native` against a plain fp64 convolution with a materialised SW, for each instruction set it has."""

import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wat_kernels import Noise, TapTable, draw_rows, philox
from wat_kernels.extension import NATIVE

pytestmark = pytest.mark.skipif(not NATIVE.available, reason=NATIVE.reason)

NOISES = [None, None, Noise("dropconnect", 0.3), Noise("multiplicative", 0.2)]
# of the sum of absolute values of what is added up, and of the result itself
TOLERANCES = {torch.float32: (4e-6, 1e-6), torch.bfloat16: (2e-5, 2**-7)}


def runs(isa: str) -> bool:
    try:
        before = torch.ops.wat_kernels.native_isa("")
        torch.ops.wat_kernels.native_isa(isa)
        torch.ops.wat_kernels.native_isa(before)
    except RuntimeError:
        return False
    return True


ISAS = [name for name in ("avx512bf16", "avx512", "avx2", "portable") if NATIVE.available and runs(name)]


@pytest.fixture(params=ISAS)
def isa(request):
    before = torch.ops.wat_kernels.native_isa("")
    torch.ops.wat_kernels.native_isa(request.param)
    yield request.param
    torch.ops.wat_kernels.native_isa(before)


@dataclass
class Case:
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    gain: torch.Tensor | None
    dy_strided: bool
    table: TapTable
    key: int
    noise: Noise | None
    shadows: int
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, bottom, left, right
    dilation: tuple[int, int]
    groups: int

    def __repr__(self):
        return (f"Case(x={tuple(self.x.shape)}/{self.x.stride()}, weight={tuple(self.weight.shape)}/{self.weight.stride()}, "
                f"{self.x.dtype}, gain={self.gain is not None and self.gain.shape}, {self.table}, key={self.key}, {self.noise}, "
                f"S={self.shadows}, {self.stride}, {self.padding}, {self.dilation}, groups={self.groups})")  # fmt: skip


def layout(tensor, kind):
    """The same numbers in another place: a slice of something larger, an offset of one element, another order."""
    if kind == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if kind == "strided":
        n, c, h, w = tensor.shape
        larger = torch.full((n + 1, c + 1, h, 2 * w), math.nan, dtype=tensor.dtype)
        view = larger[:n, 1:, :, ::2]
        view.copy_(tensor)
        return view
    if kind == "strided channels_last":
        n, c, h, w = tensor.shape
        larger = torch.full((n, c + 3, 2 * h, w + 1), math.nan, dtype=tensor.dtype).contiguous(
            memory_format=torch.channels_last
        )
        view = larger[:, 3:, ::2, 1:]
        view.copy_(tensor)
        return view
    if kind == "offset":
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    return tensor


LAYOUTS = ["contiguous", "channels_last", "channels_last", "strided", "strided channels_last", "offset"]


@st.composite
def tables(draw, kernel, generator):
    taps = math.prod(kernel)
    rows = draw(st.integers(1, 3))
    maps = torch.zeros(rows, taps, taps)
    for row in range(rows):
        kind = draw(st.sampled_from(["identity", "moved", "mixed", "empty"]))
        if kind == "identity":
            maps[row] = torch.eye(taps)
        elif kind == "moved":
            outputs = torch.rand(taps, generator=generator) < 0.6
            maps[row, outputs, torch.randperm(taps, generator=generator)[outputs]] = 1.0
        elif kind == "mixed":
            maps[row] = torch.randn(taps, taps, generator=generator)
            maps[row][torch.rand(taps, taps, generator=generator) < 1 - 2.5 / taps] = 0.0
    return TapTable(maps, [1 / rows] * rows, kernel)


CHANNELS = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 32, 33, 48, 70]))


@st.composite
def cases(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    kernel = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, 4)) for _ in range(4))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    shadows = draw(st.integers(1, 3))
    batch = shadows * draw(st.sampled_from([0, 1, 1, 2, 3, 5]))
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [max(1, span[axis] - padding[2 * axis] - padding[2 * axis + 1] + draw(st.integers(0, 9))) for axis in (0, 1)]
    inputs, outputs = draw(CHANNELS), draw(CHANNELS)
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float32, torch.bfloat16]))

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    gain = draw(st.sampled_from([None, (), (1,), (groups * outputs,)]))
    weight = normal(groups * outputs, inputs, *kernel)
    return Case(
        layout(normal(batch, groups * inputs, *size), draw(st.sampled_from(LAYOUTS))),
        layout(weight, draw(st.sampled_from(["contiguous", "contiguous", "channels_last", "strided", "offset"]))),
        normal(groups * outputs) if draw(st.booleans()) else None,
        None if gain is None else normal(*gain).to(draw(st.sampled_from([dtype, torch.float32]))),
        draw(st.booleans()),
        draw(tables(kernel, generator)),
        draw(st.integers(-(2**63), 2**63 - 1)),
        draw(st.sampled_from(NOISES)),
        shadows,
        stride,
        padding,
        dilation,
        groups,
    )  # fmt: skip


def arguments_of(case):
    code, amount = (0, 0.0) if case.noise is None else (case.noise.code, case.noise.amount)
    return (torch.tensor(case.key), *case.table.on(torch.device("cpu")), case.stride, case.padding, case.dilation,
            case.groups, case.shadows, code, amount)  # fmt: skip


def noise_factor(case):
    """(S, O, I, K) fp64, from philox.py alone."""
    outputs, inputs, *kernel = case.weight.shape
    key = torch.tensor(case.key)
    if case.noise.kind == "dropconnect":
        kept = philox.keep_mask(key, case.shadows, case.weight.numel(), case.noise.amount)
        factor = kept.double() / (1 - case.noise.amount)
    else:
        factor = 1 + case.noise.amount * philox.standard_normal(key, case.shadows, case.weight.numel()).double()
    return factor.view(case.shadows, outputs, math.prod(kernel), inputs).mT


def oracle(case, leaves, absolute=False):
    """y in fp64 from (x, weight, bias, gain); with `absolute`, the sum of the absolute values of all its terms."""
    x, weight, bias, gain = leaves
    maps = case.table.maps[draw_rows(case.table, case.key, case.shadows)].double()
    factor = None if case.noise is None else noise_factor(case)
    if absolute:
        maps, factor = maps.abs(), None if factor is None else factor.abs()
    shadow = torch.einsum("stp,oip->soit", maps, weight.flatten(2))
    shadow = shadow if factor is None else shadow * factor
    top, bottom, left, right = case.padding
    x = F.pad(x, (left, right, top, bottom))
    chunks = x.chunk(case.shadows) if len(x) else [x]
    parts = [F.conv2d(chunk, shadow[s].contiguous().view(weight.shape), None, case.stride, 0, case.dilation, case.groups)
             for s, chunk in enumerate(chunks)]  # fmt: skip
    y = torch.cat(parts)
    y = y if gain is None else y * gain.reshape(-1, 1, 1)
    return y if bias is None else y + bias.reshape(-1, 1, 1)


def native(case, dy=None):
    """[y] or, given dy, [y, dx, dweight, dbias, dgain]; what is absent is None."""
    arguments = arguments_of(case)
    y = torch.ops.wat_kernels.shadow_conv2d.native(case.x, case.weight, case.bias, case.gain, *arguments)
    if dy is None:
        return [y]
    mask = [True, True, case.bias is not None, case.gain is not None]
    grads = torch.ops.wat_kernels.shadow_conv2d_bwd.native(dy, case.x, case.weight, case.gain, *arguments, mask)
    return [y, *(grad if wanted else None for grad, wanted in zip(grads, mask, strict=True))]


def dy_of(case, y):
    dy = torch.cos(torch.arange(y.numel()).float() * 1.7).view(y.shape).to(y.dtype)
    return layout(dy, "strided channels_last") if case.dy_strided else dy.contiguous(memory_format=torch.channels_last)


def expected(case, dy, absolute=False):
    def prepare(tensor):
        if tensor is None:
            return None
        tensor = tensor.detach().double()
        return (tensor.abs() if absolute else tensor).requires_grad_()

    leaves = [prepare(tensor) for tensor in (case.x, case.weight, case.bias, case.gain)]
    y = oracle(case, leaves, absolute)
    if y.numel() == 0:
        return [y.detach(), *(None if leaf is None else torch.zeros_like(leaf) for leaf in leaves)]
    dy = dy.double().abs() if absolute else dy.double()
    grads = iter(torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy))
    return [y.detach(), *(None if leaf is None else next(grads) for leaf in leaves)]


def tolerance(case):
    """With products of bf16, SW is rounded once, as it would be in a tensor."""
    of_sum, of_result = TOLERANCES[case.x.dtype]
    rounded = case.x.dtype == torch.bfloat16 and torch.ops.wat_kernels.native_isa("") == "avx512bf16"
    return (of_sum + 2**-8 * 1.01 if rounded else of_sum), of_result


def check(case):
    dy = dy_of(case, native(case)[0])
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
def test_equals_a_convolution_with_the_materialised_weight(case):
    check(case)


@given(case=cases())
@settings(max_examples=40, **hypothesis_settings)
def test_every_instruction_set(isa, case):
    check(case)


@pytest.mark.long
@given(case=cases())
@settings(max_examples=5000, **{**hypothesis_settings, "derandomize": False})
def test_long_equals_a_convolution_with_the_materialised_weight(case):
    check(case)


def plain_case(x, weight, table=None, **changes):
    kernel = tuple(weight.shape[2:])
    case = Case(
        x, weight, None, None, False, table or TapTable.identity(kernel), 7, None, 1, (1, 1), (1, 1, 1, 1), (1, 1), 1
    )
    return replace(case, **changes)


LARGE = [
    # (x, weight): deep panels that come in parts, many output blocks, one wide line, many taps
    ((2, 1500, 5, 4), (40, 1500, 3, 3)),
    ((1, 8, 1, 3000), (70, 8, 1, 5)),
    ((3, 20, 40, 33), (96, 20, 3, 3)),
    ((1, 3, 21, 22), (5, 3, 19, 17)),
    ((40, 64, 2, 2), (64, 64, 3, 3)),
    ((2, 300, 4, 4), (17, 300, 7, 7)),
]


@pytest.mark.parametrize("shapes", LARGE, ids=str)
@pytest.mark.parametrize("noise", [None, Noise("dropconnect", 0.4)], ids=str)
def test_shapes_that_do_not_fit_one_panel(isa, shapes, noise):
    torch.manual_seed(0)
    x, weight = torch.randn(shapes[0]), torch.randn(shapes[1])
    check(plain_case(x, weight, noise=noise, padding=(2, 1, 2, 2)))


def mixed_table(taps, rows=4):
    maps = torch.randn(rows, taps, taps, generator=torch.Generator().manual_seed(1))
    return TapTable(maps * (maps.abs() > 1), [1 / rows] * rows)


@pytest.mark.parametrize("shapes", [((8, 48, 12, 12), (64, 48, 3, 3)), ((6, 40, 33, 31), (40, 40, 3, 3))], ids=str)
def test_bit_identical_for_any_number_of_threads_and_from_run_to_run(isa, shapes):
    torch.manual_seed(0)
    x = torch.randn(shapes[0]).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(shapes[1])
    case = plain_case(x, weight, mixed_table(9), bias=torch.randn(len(weight)), gain=torch.randn(len(weight)), shadows=2,
                      noise=Noise("multiplicative", 0.1))  # fmt: skip
    dy, threads, results = dy_of(case, native(case)[0]), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 3, 1):
            torch.set_num_threads(count)
            results.append(native(case, dy))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_rows_are_drawn_as_philox_draws_them(isa):
    """Row r multiplies by r + 1: the output names the row of each shadow."""
    rows, shadows = 50, 64
    table = TapTable(torch.arange(1.0, rows + 1).view(rows, 1, 1), [1 / rows] * rows)
    for key in (0, 1, -1, 2**62 + 12345):
        case = plain_case(torch.ones(shadows, 1, 1, 1), torch.ones(1, 1, 1, 1), table, key=key, shadows=shadows,
                          padding=(0, 0, 0, 0))  # fmt: skip
        word = philox.row_words(torch.tensor(key), shadows)[0]
        right = (table.on(torch.device("cpu")).thresholds[:, None] <= word).sum(0)
        assert torch.equal(native(case)[0].flatten().long() - 1, right)


@pytest.mark.parametrize("shape", [(40, 24, 3, 3), (5, 3, 2, 2), (33, 70, 1, 1)], ids=str)
def test_masks_bit_for_bit(isa, shape):
    """With a weight of ones, x picking one input channel and one tap, the output is the mask."""
    outputs, inputs, height, width = shape
    amount, key = 0.37, 99
    mask = philox.keep_mask(torch.tensor(key), 1, math.prod(shape), amount).view(outputs, height * width, inputs)
    x = torch.eye(inputs).view(inputs, inputs, 1, 1)
    pad = (height - 1, height - 1, width - 1, width - 1)
    case = plain_case(x, torch.ones(shape), key=key, noise=Noise("dropconnect", amount), padding=pad)
    y = native(case)[0]  # (i, o, tap reversed)
    got = y.flip(2, 3).flatten(2).permute(1, 2, 0)
    assert torch.equal(got != 0, mask)
    assert torch.equal(
        got[mask], torch.full((int(mask.sum()),), 1 / (1 - torch.tensor(amount, dtype=torch.float64))).float()
    )


def test_tiles_of_a_materialised_weight_give_the_same_bits(isa):
    """The kernel with the identity row, fed a materialised SW, adds in the same order."""
    torch.manual_seed(0)
    table = TapTable(torch.stack([torch.eye(9)[torch.randperm(9)]]), [1.0])
    x, weight = torch.randn(4, 40, 9, 10), torch.randn(70, 40, 3, 3)
    shadow = torch.einsum("tp,oip->oit", table.maps[0], weight.flatten(2)).view_as(weight)
    fused = plain_case(x, weight, table)
    assert torch.equal(native(fused)[0], native(plain_case(x, shadow))[0])


def test_nan_goes_through_active_taps_only(isa):
    active = torch.zeros(9, 9)
    active[4, 4] = active[5, 5] = 1
    table = TapTable(active.unsqueeze(0), [1.0])
    x = torch.zeros(1, 2, 5, 5)
    x[0, 1, 2, 2] = math.nan
    y = native(plain_case(x, torch.ones(3, 2, 3, 3), table))[0]
    reached = torch.zeros(5, 5, dtype=torch.bool)
    reached[2, 2] = reached[2, 1] = True
    assert torch.equal(y.isnan(), reached.expand(1, 3, 5, 5))
    # a NaN in a plain weight that no active tap reads is not read
    weight = torch.ones(3, 2, 3, 3)
    weight[:, :, 0, 0] = math.nan
    results = native(plain_case(torch.ones(1, 2, 5, 5), weight, table), torch.ones(1, 3, 5, 5))
    assert not any(result.isnan().any() for result in results[:3])
    x = torch.full((1, 2, 5, 5), math.inf)
    assert native(plain_case(x, torch.ones(3, 2, 3, 3), table))[0].isinf().all()


@pytest.mark.parametrize("x_form", [torch.contiguous_format, torch.channels_last])
def test_gain_gradient_where_the_weight_and_its_gradient_have_different_layouts(x_form):
    x, whole = torch.randn(2, 20, 5, 6).contiguous(memory_format=x_form), torch.randn(9, 40, 3, 3)
    channels_last = whole.contiguous(memory_format=torch.channels_last)
    for weight in (
        whole[:, :20].contiguous(),
        whole[:, ::2],
        channels_last[:, :20],
        channels_last[:, ::2],
        whole[:, :20].mT,
    ):
        check(plain_case(x, weight, mixed_table(9), gain=torch.rand(9)))


def test_no_active_tap_gives_the_bias(isa):
    table = TapTable(torch.zeros(1, 9, 9), [1.0])
    bias = torch.randn(5)
    case = plain_case(torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3), table, bias=bias, gain=torch.tensor(2.0))
    results = native(case, torch.ones(2, 5, 4, 4))
    assert torch.equal(results[0], bias.view(1, 5, 1, 1).expand(2, 5, 4, 4))
    assert all(bool((results[i] == 0).all()) for i in (1, 2, 4))


@pytest.mark.parametrize("mask", [[True, False, False, False], [False, True, False, False], [False, False, True, False],
                                  [False, False, False, True], [False, False, False, False]], ids=str)  # fmt: skip
def test_only_what_is_asked_for(mask):
    torch.manual_seed(0)
    case = plain_case(torch.randn(2, 8, 6, 6), torch.randn(9, 8, 3, 3), gain=torch.randn(9))
    dy = torch.randn(2, 9, 6, 6)
    arguments = arguments_of(case)
    everything = torch.ops.wat_kernels.shadow_conv2d_bwd.native(
        dy, case.x, case.weight, case.gain, *arguments, [True] * 4
    )
    some = torch.ops.wat_kernels.shadow_conv2d_bwd.native(dy, case.x, case.weight, case.gain, *arguments, mask)
    for wanted, got, right in zip(mask, some, everything, strict=True):
        assert torch.equal(got, right) if wanted else got.shape == (0,)


def test_wrong_tables_are_refused():
    case = plain_case(torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3))
    with pytest.raises(RuntimeError, match="another kernel size"):
        native(replace(case, weight=torch.randn(3, 2, 2, 2)))
    with pytest.raises(RuntimeError, match="shadows=2 does not divide the batch of 1"):
        native(replace(case, shadows=2))


def test_environment_chooses_the_instruction_set():
    code = "import torch, wat_kernels.extension; print(torch.ops.wat_kernels.native_isa(''))"
    for name in ISAS:
        environment = {**os.environ, "WAT_CPU_ISA": name}
        out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert out.stdout.strip() == name


OUT_OF_MEMORY = """
import ctypes, resource, torch
from wat_kernels import TapTable, shadow_conv2d
torch.set_num_threads(2)
x, weight = torch.randn(8, 1500, 9, 9).contiguous(memory_format=torch.channels_last), torch.randn(8, 1500, 3, 3)
table = TapTable.identity((3, 3))
run = lambda x, w: shadow_conv2d(x, w, table=table, key=0, padding=1, backend="native")
run(x[:, :8], weight[:, :8].contiguous())  # threads are started, libraries loaded
ctypes.CDLL(None).malloc_trim(0)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (200 << 10),) * 2)
try:
    run(x, weight)
    print("ran")
except RuntimeError as error:
    print("scratch" in str(error), str(error).splitlines()[0])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer aborts where memory runs out"
)
def test_no_memory_for_scratch_is_an_error_and_not_a_crash():
    out = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith("True"), out.stdout


@pytest.mark.long
def test_more_than_two_billion_elements():
    """One forward and backward of 2.15e9 elements: 64-bit offsets everywhere. Needs 14 GB."""
    side = 8200
    x = torch.zeros(1, 32, side, side, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    assert x.numel() > 2**31
    corner = torch.randn(1, 32, 5, 5).bfloat16()
    x[:, :, -5:, -5:] = corner
    weight = torch.randn(2, 32, 3, 3).bfloat16()
    case = plain_case(x, weight)
    y = native(case)[0]
    padded = F.pad(corner.double(), (1, 1, 1, 1))
    right = F.conv2d(padded, weight.double())[:, :, 1:, 1:]
    torch.testing.assert_close(y[:, :, -4:, -4:].double(), right, atol=0.1, rtol=2**-7)
    assert not y[:, :, :-6, :-6].any()
    dy = torch.zeros_like(y)
    dy[:, :, -1, -1] = 1
    mask = [False, True, True, False]
    dweight, dbias = torch.ops.wat_kernels.shadow_conv2d_bwd.native(dy, x, weight, None, *arguments_of(case), mask)[1:3]
    torch.testing.assert_close(dweight[0, :, :2, :2], corner[0, :, -2:, -2:])
    assert torch.equal(dbias, torch.ones(2, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_opcheck(dtype, memory_format):
    table = mixed_table(6, 3).on(torch.device("cpu"))
    arguments = (torch.tensor(3), *table, [1, 2], [0, 1, 1, 1], [2, 1], 2, 2, 2, 0.3)
    x = torch.randn(4, 4, 6, 7).to(dtype).contiguous(memory_format=memory_format)
    weight, bias, gain = torch.randn(6, 2, 2, 3).to(dtype), torch.randn(6).to(dtype), torch.randn(6).to(dtype)
    forward, backward = torch.ops.wat_kernels.shadow_conv2d.native, torch.ops.wat_kernels.shadow_conv2d_bwd.native
    torch.library.opcheck(forward, (x, weight, bias, gain, *arguments))
    dy = torch.randn_like(forward(x, weight, bias, gain, *arguments))
    for mask in ([True] * 4, [False, True, False, False], [True, False, True, False]):
        torch.library.opcheck(backward, (dy, x, weight, gain, *arguments, mask))
