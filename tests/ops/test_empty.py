"""Empty dimensions in every place: what torch's own convolution and linear layer give, or an error where they raise."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import DEVICE
from wat_kernels import TapTable, shadow_conv2d, shadow_linear

BACKENDS = ["reference", "library", *(["native"] if DEVICE == "cpu" else [])]


def gradients(function, leaves):
    """y and the gradients of all leaves, or the error."""
    leaves = [None if leaf is None else leaf.clone().requires_grad_() for leaf in leaves]
    try:
        y = function(*leaves)
        present = [leaf for leaf in leaves if leaf is not None]
        return y.detach(), *torch.autograd.grad(y.sum(), present, materialize_grads=True)
    except (RuntimeError, ValueError) as error:
        return error


def check(found, right, case):
    assert isinstance(found, Exception) == isinstance(right, Exception), (case, found, right)
    if isinstance(right, Exception):
        assert isinstance(found, ValueError), (case, found)  # from a check that names the argument
        return
    for one, other in zip(found, right, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype, case
        torch.testing.assert_close(one, other, msg=lambda text: f"{case}: {text}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gain", [False, True])
def test_convolution(backend, bias, gain):
    seen = set()
    sizes = ((0, 2), (0, 2, 4), (0, 4), (0, 1, 5), (0, 5), (1, 3), (1, 2, 4), (0, 1))
    for n, c, o, height, width, k, groups, padding in itertools.product(*sizes):
        if c % groups or o % groups or 0 not in (n, c, o, height, width):
            continue
        leaves = (
            torch.randn(n, c, height, width),
            torch.randn(o, c // groups, k, k),
            torch.randn(o) if bias else None,
            torch.rand(o) + 0.5 if gain else None,
        )
        settings = {"padding": padding, "groups": groups}

        def plain(x, weight, bias, gain, settings=settings):
            return F.conv2d(x, weight if gain is None else weight * gain.reshape(-1, 1, 1, 1), bias, **settings)

        def shadow(x, weight, bias, gain, settings=settings, k=k):
            table = TapTable.identity((k, k))
            return shadow_conv2d(x, weight, bias, gain=gain, table=table, key=1, backend=backend, **settings)

        right = gradients(plain, leaves)
        check(gradients(shadow, leaves), right, (n, c, o, height, width, k, groups, padding))
        seen.add((isinstance(right, Exception), c == 0, n == 0))
    assert {(False, True, False), (False, False, True), (True, False, False)} <= seen


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gain", [False, True])
def test_linear(backend, bias, gain):
    for rows, features, out, leading in itertools.product((0, 3), (0, 4), (0, 5), (0, 1, 2)):
        shape = {0: (features,), 1: (rows, features), 2: (2, rows, features)}[leading]
        leaves = (
            torch.randn(shape),
            torch.randn(out, features),
            torch.randn(out) if bias else None,
            torch.rand(out) + 0.5 if gain else None,
        )

        def plain(x, weight, bias, gain):
            return F.linear(x, weight if gain is None else weight * gain.reshape(-1, 1), bias)

        def shadow(x, weight, bias, gain):
            return shadow_linear(x, weight, bias, gain=gain, key=1, backend=backend)

        check(gradients(shadow, leaves), gradients(plain, leaves), (shape, out))


def test_uneven_padding_without_channels():
    """'same' padding of an even kernel."""
    x, weight, bias = torch.randn(2, 0, 5, 5), torch.randn(4, 0, 2, 2), torch.randn(4)
    y = shadow_conv2d(x, weight, bias, table=TapTable.identity((2, 2)), key=1, padding="same")
    assert y.shape == F.conv2d(x, weight, bias, padding="same").shape
