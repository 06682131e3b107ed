"""Second derivatives of the ops, by recording the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def recorded_grads(y: Tensor, inputs: Sequence[Tensor | None], dy: Tensor,
                   mask: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """d<y, dy>/dinput where `mask` asks for it, recorded for another differentiation; None elsewhere."""
    asked = [tensor for tensor, wanted in zip(inputs, mask, strict=True) if wanted]
    grads = iter(torch.autograd.grad(y, asked, dy, create_graph=True))
    return tuple(next(grads) if wanted else None for wanted in mask)


def second_derivative(first: Callable, ctx, inputs: Sequence[Tensor | None], key: Tensor,
                      grad_grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """What the backward of a backward returns for its `inputs`, (dy, x, weight, gain).

    first:      (dy, x, weight, gain, key, arguments, mask) -> the four first derivatives, recorded
    grad_grads: what arrives for those four; places outside of ctx.mask are ignored
    """
    with torch.enable_grad():
        # aliases: differentiable themselves, so that a third derivative exists, and distinct from what was saved
        recorded = [None if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in inputs]
        grads = first(*recorded, key, ctx.arguments, ctx.mask)
        pairs = [(g, gg) for g, gg in zip(grads, grad_grads, strict=True) if g is not None and gg is not None]
        if not pairs:
            return (None,) * len(inputs)
        present = [t for t in recorded if t is not None]
        found = iter(torch.autograd.grad([g for g, _ in pairs], present, [gg for _, gg in pairs], allow_unused=True,
                                         create_graph=torch.is_grad_enabled()))
    return tuple(None if t is None else next(found) for t in recorded)
