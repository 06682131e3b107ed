"""The autograd function that every op and every backend shares, twice differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wat_kernels.checks import autocast_dtype, without_autocast
from wat_kernels.torch_library import SCALED


def apply(
    op: str,
    backend: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    key: Tensor,
    arguments: tuple,
) -> Tensor:
    """`torch.ops.wat_kernels.<op>.<backend>(x, weight, bias, gain, key, *arguments)`, differentiable."""
    if backend == "reference":  # a composition of differentiable operations
        return _overload(op, backend, arguments)(x, weight, bias, gain, key, *arguments)
    return _Shadow.apply(op, backend, x, weight, bias, gain, key, arguments)


def _overload(op: str, backend: str, arguments: tuple):
    scaled = SCALED if isinstance(arguments[-1], Tensor) else ""  # the last is the amount of the noise
    return getattr(getattr(torch.ops.wat_kernels, op + scaled), backend)


class _Shadow(torch.autograd.Function):
    """Saves x, PW, gain and the key. SW, masks and grids are drawn again in the backward pass.

    The table's tensors are held by reference in `arguments`: they belong to the table and cost nothing here.
    """

    @staticmethod
    def forward(ctx, op, backend, x, weight, bias, gain, key, arguments):
        ctx.save_for_backward(x, weight, gain, key)
        ctx.op, ctx.backend, ctx.arguments = op, backend, arguments
        return _overload(op, backend, arguments)(x, weight, bias, gain, key, *arguments)

    @staticmethod
    def backward(ctx, dy):
        mask = ctx.needs_input_grad[2:6]
        device = dy.device.type
        with without_autocast(autocast_dtype(device), device):  # backward may be called where autocast is on
            if torch.is_grad_enabled():
                grads = _ShadowBackward.apply(ctx.op, ctx.backend, dy, *ctx.saved_tensors, ctx.arguments, mask)
            else:
                overload = _overload(f"{ctx.op}_bwd", ctx.backend, ctx.arguments)
                grads = overload(dy, *ctx.saved_tensors, *ctx.arguments, mask)
        grads = (grad if asked else None for grad, asked in zip(grads, mask, strict=True))
        return None, None, *grads, None, None


class _ShadowBackward(torch.autograd.Function):
    """The first derivative as a function of its own, so that higher ones exist for every backend.

    Its derivative is taken of the reference: exact, and not a path where speed counts.
    """

    @staticmethod
    def forward(ctx, op, backend, dy, x, weight, gain, key, arguments, mask):
        ctx.save_for_backward(dy, x, weight, gain, key)
        ctx.op, ctx.arguments, ctx.mask = op, arguments, mask
        return _overload(f"{op}_bwd", backend, arguments)(dy, x, weight, gain, key, *arguments, mask)

    @staticmethod
    def backward(ctx, *grad_grads):
        *inputs, key = ctx.saved_tensors
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # aliases: distinct from what was saved, and still connected to it when a third derivative is wanted
            dy, x, weight, gain = (
                None if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in inputs
            )
            grads = _reference_grads(ctx.op, dy, x, weight, gain, key, ctx.arguments, ctx.mask)
            pairs = [(g, gg) for g, gg in zip(grads, grad_grads, strict=True) if g is not None and gg is not None]
            present = [t for t in (dy, x, weight, gain) if t is not None]
            found = iter(
                torch.autograd.grad(
                    [g for g, _ in pairs], present, [gg for _, gg in pairs], allow_unused=True, create_graph=again
                )
            )
        second = (None if t is None else next(found) for t in (dy, x, weight, gain))
        return None, None, *second, None, None, None


def _reference_grads(
    op: str,
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    gain: Tensor | None,
    key: Tensor,
    arguments: tuple,
    mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The reference's gradients for x, weight, bias and gain where `mask` asks for them, recorded."""
    bias = dy.new_zeros(weight.shape[0]).requires_grad_()
    y = _overload(op, "reference", arguments)(x, weight, bias, gain, key, *arguments)
    asked = [t for t, wanted in zip((x, weight, bias, gain), mask, strict=True) if wanted]
    grads = iter(torch.autograd.grad(y, asked, dy, create_graph=True))
    return tuple(next(grads) if wanted else None for wanted in mask)
