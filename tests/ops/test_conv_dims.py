"""`shadow_conv` of 1, 2 and 3 dimensions, transposed and not: values, gradients and formats against torch's own functions."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

import wat_kernels
from tests.conftest import DEVICE, examples
from tests.ops import oracle
from tests.ops.cases import TOLERANCES, ConvCase, conv_cases_of, torch_op
from wat_kernels import Noise, TapTable, dispatch, shadow_conv
from wat_kernels.ops.conv import BACKENDS
from wat_kernels.ops.conv.geometry import strides_in

KINDS = list(itertools.product((1, 2, 3), (False, True)))
NAMES = {(dims, transposed): f"conv{'_transpose' if transposed else ''}{dims}d" for dims, transposed in KINDS}


def running(dims: int, transposed: bool, dtype=torch.float32) -> list[str]:
    call = dispatch.Call(DEVICE, dtype, (3,) * dims, 8, 8, transposed=transposed)
    return [name for name, backend in BACKENDS.items() if backend.supports(call)[0]]


# (backend, dims, transposed) of all that run fp32 here, and of those that run fp64
HERE = [(name, *kind) for kind in KINDS for name in running(*kind)]
EXACT = [(name, *kind) for kind in KINDS for name in running(*kind, torch.float64)]


def run(case: ConvCase, backend: str, transposed: bool):
    return shadow_conv(
        case.x, case.weight, case.bias, table=case.table, key=case.key, gain=case.gain, noise=case.noise,
        shadows=case.shadows, backend=backend, transposed=transposed, **case.arguments,
    )  # fmt: skip


def gradients(y, leaves):
    dy = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view_as(y).to(y.dtype)
    return torch.autograd.grad(y, leaves, dy, materialize_grads=True)


def expected_of(case: ConvCase, transposed: bool):
    weights = oracle.shadow_kernels(case.weight, case.table, case.key, case.noise, case.shadows)
    return oracle.conv(case.x, weights, case.bias, case.gain, transposed, **case.arguments)


@pytest.mark.parametrize(("backend", "dims", "transposed"), EXACT)
def test_equals_torch_s_function_of_the_materialised_weight(backend, dims, transposed):
    @given(case=conv_cases_of(dims, transposed))
    @settings(max_examples=examples(40), deadline=None)
    def check(case):
        for leaf in case.leaves:
            leaf.requires_grad_()
        y, expected = run(case, backend, transposed), expected_of(case, transposed)
        gaussian = case.noise is not None and case.noise.kind == "multiplicative"
        # a GPU's Gaussian noise is that of the CPU to a few ulp of fp32
        tolerance = {"rtol": 1e-6, "atol": 1e-6} if gaussian and y.is_cuda else TOLERANCES[torch.float64]
        torch.testing.assert_close(y, expected, **tolerance)
        for grad, right in zip(gradients(y, case.leaves), gradients(expected, case.leaves), strict=True):
            torch.testing.assert_close(grad, right, **tolerance)

    check()


@pytest.mark.parametrize(("backend", "dims", "transposed"), [kind for kind in HERE if kind not in EXACT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_backends_equal_the_reference(backend, dims, transposed, dtype):
    """In fp64 from the same rounded numbers; what cancels errs by its terms."""

    @given(case=conv_cases_of(dims, transposed, dtype))
    @settings(max_examples=examples(60), deadline=None)
    def check(case):
        for leaf in case.leaves:
            leaf.requires_grad_()
        y = run(case, backend, transposed)
        found = [y, *gradients(y, case.leaves)]
        for name in ("x", "weight", "bias", "gain"):
            tensor = getattr(case, name)
            setattr(case, name, None if tensor is None else tensor.detach().double().requires_grad_())
        y = run(case, "reference", transposed)
        tolerance = TOLERANCES[dtype]
        for one, right in zip(found, [y, *gradients(y, case.leaves)], strict=True):
            assert one.dtype == dtype
            scale = max(1.0, float(right.detach().abs().max()))
            torch.testing.assert_close(one.double(), right, rtol=tolerance["rtol"], atol=tolerance["atol"] * scale)

    check()


@pytest.mark.parametrize(("dims", "transposed"), KINDS)
@pytest.mark.parametrize("noise", [None, Noise("multiplicative", 0.2)], ids=str)
@pytest.mark.parametrize("backend", ["reference", "library"])
def test_gradcheck_and_gradgradcheck(backend, dims, transposed, noise):
    kernel = (2, 3, 2)[:dims]
    taps = math.prod(kernel)
    table = TapTable(
        torch.stack([torch.eye(taps), torch.randn(taps, taps) * (torch.rand(taps, taps) < 0.3)]), [0.5, 0.5]
    )
    arguments = {"stride": 2, "padding": 1, "groups": 2, "transposed": transposed, "shadows": 2}
    weight = (4, 3, *kernel) if transposed else (6, 2, *kernel)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True)
              for shape in ((2, 4, *(3, 4, 3)[:dims]), weight, (6,), (6,))]  # fmt: skip

    def function(x, weight, bias, gain):
        return shadow_conv(x, weight, bias, gain=gain, table=table, key=17, noise=noise, backend=backend, **arguments)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize(("backend", "dims", "transposed"), [kind for kind in HERE if kind[0] != "triton"])
def test_torch_s_own_samples_with_the_identity(backend, dims, transposed):
    """By the functions of each dimension, whose arguments have torch's names."""
    name, seen = NAMES[dims, transposed], 0
    op = torch_op(f"nn.functional.{name}")
    names = (
        "bias",
        "stride",
        "padding",
        *(("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")),
    )
    for sample in op.sample_inputs(DEVICE, torch.float32, requires_grad=False):
        weight = sample.args[0]
        kwargs = {**dict(zip(names, sample.args[1:], strict=False)), **sample.kwargs}
        y = getattr(wat_kernels, f"shadow_{name}")(
            sample.input, weight, kwargs.pop("bias", None), table=TapTable.identity(weight.shape[2:]), key=1,
            backend=backend, **kwargs,
        )  # fmt: skip
        torch.testing.assert_close(y, op.op(sample.input, *sample.args, **sample.kwargs), rtol=1e-4, atol=1e-4)
        seen += 1
    assert seen >= 4


@pytest.mark.parametrize(("backend", "dims", "transposed"), [kind for kind in HERE if kind[0] != "triton"])
def test_memory_formats_are_torch_s(backend, dims, transposed):
    """Of y and of the gradients, in both formats of x and of the weight."""
    channels_last = torch.channels_last_3d if dims == 3 else torch.channels_last
    sizes = (9, 10, 11)[:dims]
    for x_form, weight_form in itertools.product((torch.contiguous_format, channels_last), repeat=2):
        shapes = ((4, 8, *sizes), (8, 8, *[3] * dims))
        x, weight = (
            torch.empty_strided(shape, strides_in(shape, form)).normal_().requires_grad_()
            for shape, form in zip(shapes, (x_form, weight_form), strict=True)
        )
        y = shadow_conv(
            x, weight, table=TapTable.identity((3,) * dims), key=1, padding=1, transposed=transposed, backend=backend
        )
        expected = getattr(F, NAMES[dims, transposed])(x, weight, padding=1)
        assert y.stride() == expected.stride(), (x_form, weight_form)
        found, right = (torch.autograd.grad(t.sum(), (x, weight)) for t in (y, expected))
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
        assert [t.stride() for t in found] == [t.stride() for t in right], (x_form, weight_form)


@pytest.mark.parametrize(
    ("backend", "dims", "transposed"), [kind for kind in HERE if kind[0] not in ("reference", "triton")]
)
def test_opcheck(backend, dims, transposed):
    kernel = (2, 3, 2)[:dims]
    taps = math.prod(kernel)
    table = TapTable(torch.randn(3, taps, taps) * (torch.rand(3, taps, taps) < 0.4), [0.3, 0.3, 0.4])
    drawn = (torch.tensor(3), *table.on(torch.get_default_device()), [1, 2, 2][:dims], [0, 1, 1, 1, 0, 0][: 2 * dims],
             [2, 1, 1][:dims], 2, transposed, 2, 2, 0.3)  # fmt: skip
    shape = (4, 4, *(6, 7, 5)[:dims])
    weight = torch.randn((4, 3, *kernel) if transposed else (6, 2, *kernel))
    for form in (torch.contiguous_format, torch.channels_last_3d if dims == 3 else torch.channels_last):
        x, bias, gain = torch.empty_strided(shape, strides_in(shape, form)).normal_(), torch.randn(6), torch.randn(6)
        forward = getattr(torch.ops.wat_kernels.shadow_conv, backend)
        torch.library.opcheck(forward, (x, weight, bias, gain, *drawn))
        dy = torch.randn_like(forward(x, weight, bias, gain, *drawn))
        for mask in ([True] * 4, [False, True, False, False]):
            torch.library.opcheck(
                getattr(torch.ops.wat_kernels.shadow_conv_bwd, backend), (dy, x, weight, gain, *drawn, mask)
            )


@pytest.mark.parametrize(("dims", "transposed"), KINDS)
def test_unbatched_and_autocast_and_the_name_s_own_function(dims, transposed):
    name = NAMES[dims, transposed]
    function = getattr(wat_kernels, f"shadow_{name}")
    x, weight = torch.randn(2, 4, *[6] * dims), torch.randn(4, 4, *[3] * dims)
    given = {"table": TapTable.identity((3,) * dims), "key": 1}
    y = function(x, weight, **given)
    torch.testing.assert_close(y, getattr(F, name)(x, weight), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(function(x[0], weight, **given), y[0])
    with torch.autocast(DEVICE, torch.bfloat16):
        low = function(x, weight, **given)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), y, rtol=5e-2, atol=2e-1)


@pytest.mark.cpu_only
@pytest.mark.parametrize(("dims", "transposed"), [(1, False), (3, False), (2, True)])
def test_compiled(dims, transposed):
    table = TapTable(torch.randn(4, 3**dims, 3**dims), [0.25] * 4)

    def function(x, weight, gain):
        return shadow_conv(x, weight, gain=gain, table=table, key=1, transposed=transposed, padding=1, stride=2)

    leaves = [
        t.requires_grad_() for t in (torch.randn(2, 4, *[5] * dims), torch.randn(4, 4, *[3] * dims), torch.randn(4))
    ]
    results = []
    for one in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        y = one(*leaves)
        results.append([y, *gradients(y, leaves)])
    torch.testing.assert_close(*results)


@pytest.mark.cpu_only
@pytest.mark.parametrize(("dims", "transposed"), KINDS)
def test_flops_are_those_of_torch_s_formula(dims, transposed):
    from torch.utils.flop_counter import FlopCounterMode

    x, weight = (t.requires_grad_() for t in (torch.randn(2, 4, *[5] * dims), torch.randn(4, 4, *[3] * dims)))
    counts = []
    for function in (
        lambda: shadow_conv(x, weight, table=TapTable.identity((3,) * dims), key=1, transposed=transposed, stride=2, backend="library"),
        lambda: getattr(F, NAMES[dims, transposed])(x, weight, stride=2),
    ):  # fmt: skip
        with FlopCounterMode(display=False) as counter:
            function().sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


X, WEIGHT = torch.randn(2, 4, 5, 5), torch.randn(4, 6, 3, 3)
ERRORS = [
    ({"output_padding": 2, "stride": 2}, ValueError, r"output_padding=2 with stride=\(2, 2\) and dilation=\(1, 1\); accepted is less"),
    ({"output_padding": -1}, ValueError, "output_padding=-1; accepted is an int or two ints, each >= 0"),
    ({"padding": "same"}, ValueError, "padding='same'; accepted is an int or two ints >= 0 for a transposed convolution"),
    ({"padding": 4}, ValueError, r"x of \(5, 5\) cut by \(4, 4, 4, 4\) gives a y of \(-1, -1\)"),
    ({"groups": 3}, ValueError, "groups=3; accepted is an int >= 1 that divides the 4 input channels"),
    ({"x": X[:, :2]}, ValueError, r"x has 2 channels; weight \(4, 6, 3, 3\) with groups=1 takes 4"),
    ({"bias": torch.ones(4)}, ValueError, r"bias has shape \(4,\); accepted is \(6,\)"),
    ({"gain": torch.ones(4)}, ValueError, r"gain has shape \(4,\); accepted is one element or \(6,\)"),
    ({"weight": WEIGHT[:, :0]}, ValueError, "accepted is at least one output channel"),
    ({"transposed": 1}, TypeError, "transposed=1; accepted is a bool"),
    ({"transposed": False, "output_padding": 1, "weight": WEIGHT.mT[:4, :4]}, ValueError, "output_padding=1; accepted is 0 where transposed=False"),
    ({"weight": WEIGHT[0, 0]}, ValueError, r"weight has shape \(3, 3\); accepted are 3 or 4 or 5 dimensions"),
    ({"stride": (1, 1, 1)}, ValueError, r"stride=\(1, 1, 1\); accepted is an int or two ints"),
]  # fmt: skip


@pytest.mark.cpu_only
@pytest.mark.parametrize(("change", "error", "message"), ERRORS, ids=[case[2][:40] for case in ERRORS])
def test_errors(change, error, message):
    given = {"x": X, "weight": WEIGHT, "table": TapTable.identity((3, 3)), "key": 1, "transposed": True, **change}
    with pytest.raises(error, match=message):
        shadow_conv(**given)


@pytest.mark.cpu_only
def test_functions_of_a_dimension_take_no_other():
    with pytest.raises(ValueError, match=r"weight has shape \(4, 6, 3, 3\); accepted are 3 dimensions"):
        wat_kernels.shadow_conv_transpose1d(X, WEIGHT, table=TapTable.identity((3, 3)), key=1)
    with pytest.raises(ValueError, match=r"x has shape \(5,\); accepted is \(N, C, D, H, W\) or \(C, D, H, W\)"):
        wat_kernels.shadow_conv3d(X[0, 0, 0], torch.ones(1, 1, 1, 3, 3), table=TapTable.identity((1, 3, 3)), key=1)
