"""The backend that docs/new_backend.md writes down is a right one."""

import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.docs.snippets import sections
from tests.ops.cases import TOLERANCES, conv_cases
from wat_kernels import Noise, TapTable, dispatch, shadow_conv2d, torch_library
from wat_kernels.ops.conv2d import BACKENDS, schema


@pytest.fixture(scope="module")
def _mirror():
    """`mirror`, as its name in NAMES and its module in BACKENDS would make it."""
    torch_library.define("shadow_conv2d", schema.SCHEMA, schema._fake_fwd, "mirror")
    torch_library.define("shadow_conv2d_bwd", schema.SCHEMA_BWD, schema._fake_bwd, "mirror")
    module = types.ModuleType("mirror")
    (code,) = sections("new_backend.md")["The backend"]
    exec(code, vars(module))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "NAMES", (*dispatch.NAMES, "mirror"))
        patch.setitem(BACKENDS, "mirror", module)
        yield


@pytest.mark.usefixtures("_mirror")
@given(case=conv_cases(), asked=st.integers(1, 15))
@settings(max_examples=60, deadline=None)
def test_equals_the_reference(case, asked):
    """Values, memory format, and the gradients of any of x, weight, bias and gain."""
    leaves = [leaf for place, leaf in enumerate(case.leaves) if asked >> place & 1] or [case.weight]
    for leaf in leaves:
        leaf.requires_grad_()
    y, expected = (
        shadow_conv2d(
            case.x, case.weight, case.bias, table=case.table, key=case.key, gain=case.gain, shadows=case.shadows,
            backend=backend, **case.arguments,
        )
        for backend in ("mirror", "reference")
    )  # fmt: skip
    torch.testing.assert_close(y, expected, **TOLERANCES[torch.float64])
    for form in (torch.contiguous_format, torch.channels_last):
        assert y.is_contiguous(memory_format=form) == expected.is_contiguous(memory_format=form)
    dy = torch.randn_like(y)
    for grad, right in zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True):
        torch.testing.assert_close(grad, right, **TOLERANCES[torch.float64])


@pytest.mark.usefixtures("_mirror")
def test_refuses_what_it_says():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    with pytest.raises(RuntimeError, match="backend='mirror' cannot run shadow_conv2d: it has no elementwise noise"):
        shadow_conv2d(
            x, weight, table=TapTable.identity((3, 3)), key=0, noise=Noise("dropconnect", 0.1), backend="mirror"
        )
