"""What test_new_backend.py runs in a process of its own, with a wat_kernels that has the backend `mirror`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.cases import TOLERANCES, conv_cases
from wat_kernels import Noise, TapTable, shadow_conv2d


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


def test_refuses_what_it_says():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    with pytest.raises(RuntimeError, match="backend='mirror' cannot run shadow_conv: it has no elementwise noise"):
        shadow_conv2d(
            x, weight, table=TapTable.identity((3, 3)), key=0, noise=Noise("dropconnect", 0.1), backend="mirror"
        )
