"""No time without a right result: each run is compared with the reference first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from wat_kernels.tolerances import TOLERANCES

_GAIN_GRADIENT = 1000.0  # what it comes to along the output: within reach of fp16


class WrongResult(Exception):
    """A result that is not what the reference gives; its text says which and by how much."""


def check_layer(
    forward: Callable[..., Tensor], reference: Callable[..., Tensor], leaves: Sequence[Tensor], dy: Tensor
) -> None:
    """Compares output and gradients of `forward(*leaves)` with those of `reference(*leaves)`.

    Half-precision leaves go to the reference as fp32. A difference is measured in units of the largest value of what is
    expected, and must be within the tolerance of the leaves' dtype. Raises WrongResult.
    """
    dtype = dy.dtype
    compute = torch.promote_types(dtype, torch.float32)
    exact = [leaf.detach().to(compute).requires_grad_() for leaf in leaves]
    with fp32_precision():
        y = forward(*leaves)
        got = [y, *torch.autograd.grad(y, leaves, dy)]
        y = reference(*exact)
        expected = [y, *torch.autograd.grad(y, exact, dy.to(compute))]
    names = ["the output", *(f"gradient {index}" for index in range(len(leaves)))]
    for name, one, other in zip(names, got, expected, strict=True):
        _compare(name, one.detach(), other.detach(), dtype)


def along_output(reference: Callable[..., Tensor], leaves: Sequence[Tensor]) -> Tensor:
    """A dy in the direction of the output, of the leaves' dtype.

    With it the gradient of a gain that all channels share is a sum of squares. With a random one it is a small difference
    of large sums, and in half precision nothing but their rounding errors may be left of it.
    """
    dtype = leaves[0].dtype
    compute = torch.promote_types(dtype, torch.float32)
    with torch.no_grad():
        y = reference(*(leaf.detach().to(compute) for leaf in leaves))
    return (y * (_GAIN_GRADIENT / y.double().square().sum())).to(dtype)


def _compare(name: str, got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    if got.shape != expected.shape:
        raise WrongResult(f"{name} has shape {tuple(got.shape)}, the reference's {tuple(expected.shape)}")
    tolerance, scale = TOLERANCES[dtype], expected.abs().max().clamp_min(1e-30)
    difference = (got.to(expected.dtype) - expected).abs() / scale
    allowed = tolerance["atol"] + tolerance["rtol"] * expected.abs() / scale
    if not bool((difference <= allowed).all()):  # NaN is not within any tolerance
        raise WrongResult(
            f"{name} differs from the reference by {float(difference.max()):.2g} of its largest value; "
            f"the tolerance of {dtype} is {tolerance['atol']:g}"
        )


@contextlib.contextmanager
def fp32_precision(precision: str = "ieee") -> Iterator[None]:
    """fp32 means fp32 where results are compared, or torch's "tf32"; what is timed has the user's settings."""
    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = precision
        yield
    finally:
        for switch, restored in zip(switches, before, strict=True):
            switch.fp32_precision = restored
