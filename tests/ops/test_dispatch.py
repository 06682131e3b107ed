"""Choosing a backend: order, reasons, the environment variable, autocast, compiled graphs."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import DEVICE
from wat_kernels import Noise, TapTable, autograd, dispatch, shadow_conv2d, shadow_linear
from wat_kernels.extension import NATIVE
from wat_kernels.ops.conv.op import BACKENDS as CONV2D
from wat_kernels.ops.linear.op import BACKENDS as LINEAR

TABLE = TapTable(torch.stack([torch.eye(9), torch.eye(9).flip(0)]), [0.5, 0.5], (3, 3))


BACKENDS = {"shadow_conv": CONV2D, "shadow_linear": LINEAR}


class Refusing:
    @staticmethod
    def supports(call):
        return False, "the moon is full"


class Accepting:
    @staticmethod
    def supports(call):
        return True, ""


CALL = dispatch.Call("cpu", torch.float32)


def test_auto_takes_the_first_that_accepts_and_says_once_why_not_the_others(caplog):
    backends = {"native": Refusing, "library": Accepting, "reference": Accepting}
    with caplog.at_level(logging.INFO, logger="wat_kernels"):
        assert dispatch.choose("test_op_1", backends, "auto", "auto", CALL) == "library"
        assert dispatch.choose("test_op_1", backends, "auto", "auto", CALL._replace(groups=7)) == "library"
    assert [record.getMessage() for record in caplog.records] == [
        "test_op_1: backend native not used: the moon is full"
    ]


def test_a_named_backend_runs_or_raises_with_the_reason():
    backends = {"native": Refusing, "library": Accepting}
    assert dispatch.choose("test_op_2", backends, "library", "auto", CALL) == "library"
    with pytest.raises(RuntimeError, match="backend='native' cannot run test_op_2: the moon is full"):
        dispatch.choose("test_op_2", backends, "native", "auto", CALL)
    with pytest.raises(RuntimeError, match="not part of this build"):
        dispatch.choose("test_op_2", backends, "cuda", "auto", CALL)


def test_nobody_accepts():
    with pytest.raises(RuntimeError, match="no backend runs test_op_3"):
        dispatch.choose("test_op_3", {"native": Refusing}, "auto", "auto", CALL)


def test_the_environment_overrides_auto_only(monkeypatch):
    backends = {"library": Accepting, "reference": Accepting}
    assert dispatch.choose("test_op_4", backends, "auto", "reference", CALL) == "reference"
    assert dispatch.choose("test_op_4", backends, "library", "reference", CALL) == "library"
    x, weight = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)
    expected = shadow_conv2d(x, weight, table=TABLE, key=1)
    monkeypatch.setenv("WAT_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="WAT_BACKEND='nonsense'"):
        shadow_conv2d(x, weight, table=TABLE, key=1)
    torch.testing.assert_close(shadow_conv2d(x, weight, table=TABLE, key=1, backend="library"), expected)
    monkeypatch.setenv("WAT_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="backend='cuda' cannot run shadow_linear"):
        shadow_linear(x, torch.randn(5, 6), key=1)


@pytest.mark.parametrize("backend", ["reference", "library"])
def test_autocast_gives_the_dtype_of_torch(backend):
    x, weight, bias = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3), torch.randn(4)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y = shadow_conv2d(x, weight, bias, table=TABLE, key=1, backend=backend)
        z = shadow_linear(x, torch.randn(5, 6), key=1, noise=Noise("dropconnect", 0.2), backend=backend)
        plain = torch.nn.functional.conv2d(x, weight, bias)
    assert y.dtype == z.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), shadow_conv2d(x, weight, bias, table=TABLE, key=1), atol=5e-2, rtol=5e-2)


def test_autocast_takes_mixed_dtypes_and_sends_gradients_back_in_them():
    x = torch.randn(2, 3, 6, 6, dtype=torch.bfloat16)
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y = shadow_conv2d(x, weight, table=TABLE, key=1)
    y.float().sum().backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", ["reference", "library", "auto"])
def test_compiled_without_a_graph_break_equals_eager(backend):
    noise = Noise("multiplicative", 0.1)

    def function(x, weight, gain, key):
        y = shadow_conv2d(
            x, weight, table=TABLE, key=key, gain=gain, noise=noise, shadows=2, padding=1, backend=backend
        )
        return shadow_linear(y, weight.flatten(1)[:, :6], key=key, noise=noise, backend=backend)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((4, 3, 6, 6), (4, 3, 3, 3), (4,))]
    compiled(*leaves, torch.tensor(0))
    with torch.compiler.set_stance("fail_on_recompile"):
        for key in range(4):
            results = []
            for run in (function, compiled):
                y = run(*leaves, torch.tensor(key))
                results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
            for eager, other in zip(*results, strict=True):
                torch.testing.assert_close(other, eager)


class Supporting(Accepting):
    @staticmethod
    def worthwhile(call):
        return call.rows < 100, "slow with many rows"


def test_auto_passes_over_what_is_not_worthwhile_and_a_name_does_not():
    backends = {"cuda": Refusing, "native": Supporting, "library": Accepting}
    many = CALL._replace(rows=100)
    decided = dispatch.decide("test_op_5", backends, "auto", "auto", many)
    assert decided == ("library", (("cuda", "the moon is full"), ("native", "slow with many rows")))
    assert dispatch.decide("test_op_5", backends, "auto", "auto", CALL) == ("native", (("cuda", "the moon is full"),))
    assert dispatch.decide("test_op_5", backends, "native", "auto", many) == ("native", ())
    assert dispatch.decide("test_op_5", backends, "auto", "native", many) == ("native", ())


@pytest.mark.skipif(not NATIVE.available, reason=NATIVE.reason)
def test_without_vector_instructions_auto_takes_the_library_where_that_is_faster(monkeypatch):
    def taken(op, **call):
        return dispatch.choose(op, BACKENDS[op], "auto", "auto", dispatch.Call("cpu", torch.float32, **call))

    dense = {"kernel": (3, 3), "in_channels": 64, "out_channels": 64}
    depthwise = {**dense, "groups": 64}
    for backends in BACKENDS.values():
        monkeypatch.setattr(backends["native"], "NATIVE_IS_PORTABLE", True)
    assert taken("shadow_conv", **dense, rows=16384) == "library"
    assert taken("shadow_conv", **dense, rows=16) == "native"
    assert taken("shadow_conv", **depthwise, rows=16384) == "native"
    assert taken("shadow_linear", rows=127) == "native"
    assert taken("shadow_linear", rows=128) == "library"
    for backends in BACKENDS.values():
        monkeypatch.setattr(backends["native"], "NATIVE_IS_PORTABLE", False)
    assert taken("shadow_conv", **dense, rows=16384) == taken("shadow_linear", rows=128) == "native"


@pytest.mark.skipif(not NATIVE.available, reason=NATIVE.reason)
@pytest.mark.parametrize(
    "units, own, large_goes_to",
    [
        ("", "", "native"),
        ("avx512bf16", "avx512bf16", "native"),
        ("avx512bf16", "", "library"),
        ("amx", "", "library"),
        ("amx", "avx512bf16", "library"),
    ],
)
def test_where_only_torch_has_bf16_units_auto_takes_the_library_for_large_bf16_convolutions(
    monkeypatch, units, own, large_goes_to
):
    backends = BACKENDS["shadow_conv"]
    monkeypatch.setattr(backends["native"], "BF16_UNITS", units)
    monkeypatch.setattr(backends["native"], "NATIVE_BF16_UNITS", own)
    monkeypatch.setattr(backends["native"], "NATIVE_IS_PORTABLE", False)

    def taken(dtype, **call):
        return dispatch.choose("shadow_conv", backends, "auto", "auto", dispatch.Call("cpu", dtype, (3, 3), **call))

    large = {"in_channels": 64, "out_channels": 64, "rows": 2**14}
    assert taken(torch.bfloat16, **large) == large_goes_to
    assert taken(torch.float32, **large) == "native"
    assert taken(torch.bfloat16, **large, groups=64) == "native"
    assert taken(torch.bfloat16, **{**large, "rows": 512}) == "native"  # little work
    assert taken(torch.bfloat16, in_channels=512, out_channels=512, rows=256) == "native"  # more weights than pixels


@pytest.mark.skipif(not NATIVE.available, reason=NATIVE.reason)
@pytest.mark.parametrize(
    "units, own, most_rows",
    [
        ("", "", 2**20),
        ("avx512bf16", "avx512bf16", 1023),
        ("avx512bf16", "", 127),
        ("amx", "avx512bf16", 127),
    ],
)
def test_bf16_products_of_many_rows_go_to_the_library_where_torch_has_bf16_units(monkeypatch, units, own, most_rows):
    backends = BACKENDS["shadow_linear"]
    monkeypatch.setattr(backends["native"], "BF16_UNITS", units)
    monkeypatch.setattr(backends["native"], "NATIVE_BF16_UNITS", own)
    monkeypatch.setattr(backends["native"], "NATIVE_IS_PORTABLE", False)

    def taken(dtype, rows):
        return dispatch.choose("shadow_linear", backends, "auto", "auto", dispatch.Call("cpu", dtype, rows=rows))

    assert taken(torch.bfloat16, most_rows) == "native"
    assert taken(torch.bfloat16, most_rows + 1) == ("library" if units else "native")
    assert taken(torch.float32, 2**20) == "native"


@pytest.mark.skipif(not NATIVE.available, reason=NATIVE.reason)
def test_the_instruction_set_asked_for_at_start_decides():
    script = "from wat_kernels.extension import NATIVE_IS_PORTABLE; print(NATIVE_IS_PORTABLE)"
    environment = {**os.environ, "WAT_CPU_ISA": "portable"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_decisions_are_recorded_for_warm_calls_too():
    x, weight = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)
    shadow_conv2d(x, weight, table=TABLE, key=1, backend="library")
    with dispatch.recording() as decisions:
        shadow_conv2d(x, weight, table=TABLE, key=1, backend="library")
        shadow_linear(x, torch.randn(4, 6), key=1, backend="reference")
    assert [decision.backend for decision in decisions] == ["library", "reference"]
    shadow_conv2d(x, weight, table=TABLE, key=1)
    assert len(decisions) == 2


class Seen(TorchDispatchMode):
    """Notes the ops that pass torch's dispatcher."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("needs_gradient", [True, False])
def test_who_watches_sees_the_op(needs_gradient):
    x, weight = torch.randn(3, 5), torch.randn(4, 5, requires_grad=needs_gradient)
    arguments = {"key": 3, "noise": Noise("dropconnect", 0.3), "backend": "library"}
    right = shadow_linear(x, weight, **arguments)
    with Seen() as seen:
        y = shadow_linear(x, weight, **arguments)
        if needs_gradient:
            y.sum().backward()
    assert torch.equal(y, right)
    ours = [op for op in seen.ops if "shadow_linear" in op]
    assert ours == ["wat_kernels.shadow_linear.library", "wat_kernels.shadow_linear_bwd.library"][: 1 + needs_gradient]
    with torch.autograd.profiler.profile() as profiled:
        shadow_linear(x, weight, **arguments)
    assert "wat_kernels::shadow_linear" in {event.name for event in profiled.function_events}


@pytest.mark.parametrize("needs_gradient", [True, False])
def test_where_nobody_watches_the_dispatcher_is_passed_by(needs_gradient, monkeypatch):
    def forbidden(*_):
        raise AssertionError("through the dispatcher")

    monkeypatch.setattr(autograd, "_called", forbidden)
    x, weight = torch.randn(3, 5), torch.randn(4, 5, requires_grad=needs_gradient)
    y = shadow_linear(x, weight, key=3, backend="library")
    torch.testing.assert_close(y, x @ weight.T)
    assert y.requires_grad == needs_gradient
    if needs_gradient:
        y.sum().backward()
        torch.testing.assert_close(weight.grad, x.sum(0).expand(4, 5))
