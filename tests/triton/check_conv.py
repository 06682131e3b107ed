"""Every argument of the convolution kernels, on odd sizes, against the reference with the same key."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from tests.ops.cases import TOLERANCES, ConvCase, conv_cases
from tests.triton.device import DEVICE
from wat_kernels import Noise, TapTable, draw_rows, shadow_conv2d, shadow_linear

NOISES = [None, Noise("dropconnect", 0.3), Noise("multiplicative", 0.2)]

# the interpreter is slow: no example is shrunk
SLOW = {"deadline": None, "phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}


def gradient_of(y):
    """Numbers that every dtype has, so that all results are of the same."""
    return torch.cos(torch.arange(y.numel(), device=y.device)).bfloat16().view_as(y).to(y.dtype)


def results(backend, x, weight, bias, gain, dy=None, **arguments):
    """y and the gradients of all leaves."""
    leaves = [None if t is None else t.detach().clone(memory_format=torch.preserve_format).requires_grad_()
              for t in (x, weight, bias, gain)]  # fmt: skip
    y = shadow_conv2d(*leaves[:3], gain=leaves[3], backend=backend, **arguments)
    dy = gradient_of(y) if dy is None else dy
    present = [leaf for leaf in leaves if leaf is not None]
    return y.detach(), *torch.autograd.grad(y, present, dy, materialize_grads=True)


def check(x, weight, bias, gain, dtype=torch.float32, **arguments):
    """The Triton backend in `dtype` against the reference in fp64."""
    given_values = [None if t is None else t.to(DEVICE, dtype) for t in (x, weight, bias, gain)]
    exact = [None if t is None else t.double() for t in given_values]
    found = results("triton", *given_values, **arguments)
    right = results("reference", *exact, **arguments)
    for one, other in zip(found, right, strict=True):
        assert one.dtype == dtype and one.shape == other.shape
        scale = max(1.0, float(other.abs().max()) if other.numel() else 1.0)  # long sums: of the size of the result
        torch.testing.assert_close(one.double() / scale, other / scale, **TOLERANCES[dtype])


def check_case(case: ConvCase, dtype):
    check(case.x, case.weight, case.bias, case.gain, dtype, table=case.table, key=case.key, noise=case.noise,
          shadows=case.shadows, **case.arguments)  # fmt: skip


@given(case=conv_cases())
@settings(max_examples=2, **SLOW)
def test_random_arguments(case):
    check_case(case, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(case=conv_cases())
@settings(max_examples=1, **SLOW)
def test_random_arguments_in_low_precision(dtype, case):
    check_case(case, dtype)


def translations():
    """The rows of a translation by up to one tap of a 3x3 kernel, as nearest neighbours."""
    maps = torch.zeros(9, 9, 9)
    for row in range(9):
        for tap in range(9):
            r, q = tap // 3 - row // 3 + 1, tap % 3 - row % 3 + 1
            if 0 <= r < 3 and 0 <= q < 3:
                maps[row, tap, 3 * r + q] = 1.0
    return TapTable(maps, [1 / 9] * 9, (3, 3))


TRANSLATIONS = translations()


@pytest.mark.parametrize(
    ("channels", "noise"), [*(((40, 36), noise) for noise in NOISES), *(((35, 33), noise) for noise in NOISES[1:2])]
)
def test_several_tiles_of_everything(channels, noise):
    """More pixels, channels and chunks than one tile holds; 40 input channels take the packed noise, 35 do not."""
    x = torch.randn(4, channels[0], 9, 7).to(memory_format=torch.channels_last)
    weight = torch.randn(channels[1], channels[0], 3, 3).to(memory_format=torch.channels_last) / 10
    bias, gain = torch.randn(channels[1]), torch.rand(channels[1]) + 0.5
    check(x, weight, bias, gain, table=TRANSLATIONS, key=5, noise=noise, shadows=2, padding=1)


def test_more_blocks_of_pixels_than_one_chain():
    x, dy = torch.rand(1, 3, 40, 40), torch.rand(1, 4, 40, 40)
    found, right = (
        results(name, *(t.to(DEVICE, dtype) for t in (x, torch.rand(4, 3, 3, 3))), None, None, dy.to(DEVICE, dtype),
                table=TapTable.identity((3, 3)), key=1, padding=1)[2]
        for name, dtype in (("triton", torch.float32), ("reference", torch.float64))
    )  # fmt: skip
    assert float((found.double() - right).norm() / right.norm()) < 5e-7


@pytest.mark.parametrize("key", range(3))
def test_every_stride_class(key):
    x, weight = torch.randn(2, 3, 11, 10), torch.randn(5, 3, 3, 3)
    check(
        x, weight, None, torch.tensor(0.7), table=TRANSLATIONS, key=key, stride=(2, 3), padding=(2, 1), dilation=(1, 2)
    )


@pytest.mark.parametrize(("groups", "noise"), [(2, NOISES[0]), (2, NOISES[2]), (6, NOISES[1])])
def test_groups_and_depthwise(groups, noise):
    x, weight = torch.randn(2, 6, 5, 6), torch.randn(12, 6 // groups, 3, 3)
    check(x, weight, torch.randn(12), torch.rand(12), table=TRANSLATIONS, key=3, noise=noise, padding=1, groups=groups)


@pytest.mark.parametrize("kernel", [(5, 5), (7, 7), (8, 8), (1, 3), (3, 1)], ids=str)
def test_kernel_sizes_that_need_several_packed_words(kernel):
    taps = kernel[0] * kernel[1]
    moved = torch.eye(taps)[torch.randperm(taps)] * (torch.rand(taps, 1) < 0.7)
    arguments = {"table": TapTable(moved.unsqueeze(0), [1.0], kernel), "key": 1, "padding": 1}
    x, weight = torch.randn(2, 3, 9, 8), torch.randn(4, 3, *kernel)
    if taps <= 25:
        check(x, weight, None, None, **arguments)
        return
    found = []  # the weight gradient has no packed words
    for backend in ("triton", "reference"):
        leaf = x.to(DEVICE).requires_grad_()
        y = shadow_conv2d(leaf, weight.to(DEVICE), backend=backend, **arguments)
        found.append((y, *torch.autograd.grad(y.square().sum(), leaf)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("width", "noise"), [(1, None), (2, None), (4, None), (9, None), (1, NOISES[2]), (2, NOISES[1])]
)
def test_rows_with_coefficients(width, noise):
    """One row mixes, one is the identity and one empty: the loop is chosen by the row that was drawn."""
    mixed = torch.zeros(9, 9)
    for tap in range(9):
        mixed[tap, torch.randperm(9)[:width]] = torch.randn(width)
    table = TapTable(torch.stack([mixed, torch.eye(9), torch.zeros(9, 9)]), [0.5, 0.25, 0.25], (3, 3))
    keys = [next(k for k in range(99) if set(draw_rows(table, k, 2).tolist()) == rows) for rows in ({0, 1}, {0, 2})]
    for key in keys:
        check(torch.randn(2, 8, 4, 5), torch.randn(6, 8, 3, 3), torch.randn(6), torch.randn(6), table=table, key=key,
              noise=noise, shadows=2, padding=1)  # fmt: skip


def test_a_gain_of_zero_has_a_gradient():
    for gain in (torch.zeros(()), torch.zeros(4)):
        check(torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3), None, gain, table=TRANSLATIONS, key=1)


def test_layouts():
    """Slices, transposed and expanded tensors are read where they lie, or copied."""
    whole = torch.randn(2, 16, 9, 8).to(memory_format=torch.channels_last)
    weight = torch.randn(6, 3, 3, 3)
    images = (
        whole[:, 3:6],
        whole[:, :3, 1::2, ::2],
        torch.randn(1, 3, 1, 8).expand(2, 3, 7, 8),
        whole[..., :3].permute(0, 3, 2, 1),
    )
    weights = (weight, weight.to(memory_format=torch.channels_last), weight.mT, torch.randn(12, 6, 3, 3)[::2, ::2])
    for place, x in enumerate(images):
        for w in (weights[place], weights[(place + 2) % 4]):
            check(x, w, None, None, table=TRANSLATIONS, key=8, padding=1)


def test_offsets_of_64_bits(monkeypatch):
    monkeypatch.setattr("wat_kernels.ops.conv.triton.is_wide", lambda *tensors: True)
    x, weight = torch.randn(4, 5, 6, 7), torch.randn(3, 5, 3, 3)
    for noise in NOISES:
        check(x, weight, torch.randn(3), torch.rand(3), table=TRANSLATIONS, key=4, noise=noise, shadows=2, padding=1)


def test_an_empty_batch():
    x, weight = torch.randn(0, 3, 5, 5), torch.randn(4, 3, 3, 3)
    check(x, weight, torch.randn(4), torch.randn(4), table=TRANSLATIONS, key=1)


def test_nan_and_infinity_pass_through_active_taps_only():
    table = TapTable(torch.diag(torch.tensor([0.0] * 4 + [1.0] + [0.0] * 4)).unsqueeze(0), [1.0], (3, 3))
    x = torch.randn(1, 2, 5, 5)
    x[0, 0, 0, 0], x[0, 1, 3, 3] = torch.nan, torch.inf
    y = shadow_conv2d(
        x.to(DEVICE), torch.ones(2, 2, 3, 3, device=DEVICE), table=table, key=0, padding=1, backend="triton"
    )
    assert int(y.isfinite().logical_not().sum()) == 4


def test_only_what_is_asked_for():
    x, weight = torch.randn(2, 3, 5, 5, device=DEVICE), torch.randn(4, 3, 3, 3, device=DEVICE)
    gain = torch.rand(4, device=DEVICE)
    every = results("triton", x, weight, None, gain, table=TRANSLATIONS, key=2)
    for place in range(3):
        leaves = [x.clone(), weight.clone(), gain.clone()]
        leaves[place].requires_grad_()
        y = shadow_conv2d(*leaves[:2], table=TRANSLATIONS, key=2, gain=leaves[2], backend="triton")
        (grad,) = torch.autograd.grad(y, leaves[place], gradient_of(y))
        torch.testing.assert_close(grad, every[1 + place])


def test_a_reduction_cut_into_parts_is_the_same_at_each_run():
    x, weight = torch.randn(4, 8, 9, 9, device=DEVICE), torch.randn(8, 8, 2, 2, device=DEVICE)
    arguments = {"table": TapTable.identity((2, 2)), "key": 2, "noise": NOISES[2]}
    check(x, weight, None, torch.rand(8), **arguments)
    first, again = (results("triton", x, weight, None, None, **arguments) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("op", ["shadow_conv", "shadow_conv_bwd"])
def test_opcheck(op):
    tensors = TRANSLATIONS.on(torch.device(DEVICE))
    arguments = (torch.tensor(3, device=DEVICE), *tensors, [1, 2], [0, 1, 1, 1], [2, 1], 2, False, 2, 2, 0.3)
    x = torch.randn(4, 4, 8, 7, device=DEVICE).to(memory_format=torch.channels_last)
    weight, bias, gain = (
        torch.randn(6, 2, 3, 3, device=DEVICE),
        torch.randn(6, device=DEVICE),
        torch.randn(6, device=DEVICE),
    )
    forward = torch.ops.wat_kernels.shadow_conv.triton
    if op == "shadow_conv":
        torch.library.opcheck(forward, (x, weight, bias, gain, *arguments))
        return
    dy = torch.randn_like(forward(x, weight, bias, gain, *arguments))
    torch.library.opcheck(
        torch.ops.wat_kernels.shadow_conv_bwd.triton, (dy, x, weight, gain, *arguments, [True, True, False, True])
    )


def test_compiled_without_a_graph_break_equals_eager():
    def function(x, weight, gain, key):
        y = shadow_conv2d(
            x, weight, table=TRANSLATIONS, key=key, gain=gain, noise=NOISES[1], padding=1, backend="triton"
        )
        return shadow_linear(y, weight.flatten(1)[:, :5], key=key, noise=NOISES[1], backend="triton")

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    leaves = [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in ((2, 3, 4, 5), (4, 3, 3, 3), (4,))]
    TRANSLATIONS.on(leaves[0].device)  # as layers do
    compiled(*leaves, torch.tensor(0, device=DEVICE))
    with torch.compiler.set_stance("fail_on_recompile"):
        for key in range(1, 3):
            found = []
            for run in (function, compiled):
                y = run(*leaves, torch.tensor(key, device=DEVICE))
                found.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
            for eager, other in zip(*found, strict=True):
                torch.testing.assert_close(other, eager)


def test_refusals_name_the_reason():
    x, weight = torch.randn(1, 2, 9, 9, device=DEVICE), torch.randn(2, 2, 9, 9, device=DEVICE)
    with pytest.raises(RuntimeError, match="backend='triton' cannot run shadow_conv: the kernel is 9x9"):
        shadow_conv2d(x, weight, table=TapTable.identity((9, 9)), key=1, backend="triton")
    with pytest.raises(RuntimeError, match=r"x is torch\.float64"):
        shadow_conv2d(x.double(), weight.double(), table=TapTable.identity((9, 9)), key=1, backend="triton")
