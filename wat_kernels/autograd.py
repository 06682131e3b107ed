"""The autograd function that every op and every backend shares: twice differentiable, in reverse and in forward mode, and
open to torch.func.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from wat_kernels import torch_func
from wat_kernels.checks import PLAIN, autocast_dtype, without_autocast
from wat_kernels.signature import Draw
from wat_kernels.torch_library import IMPLEMENTATIONS, SCALED, SIGNATURES


def apply(
    op: str,
    backend: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    draw: Draw,
    layout: tuple,
) -> Tensor:
    """The op's forward on a backend, differentiable."""
    if torch_func.active():
        return _transformed(op, backend, x, weight, bias, gain, draw, layout)
    if backend == "reference":
        return _called(op, backend, draw)(x, weight, bias, gain, draw, layout)
    if forward_ad._current_level >= 0:
        return _DualShadow.apply(op, backend, x, weight, bias, gain, draw.key, draw[1:], layout)
    if not torch.compiler.is_compiling() and not _needs_gradient(x, weight, bias, gain):
        return _implementation(op, backend, draw, x, weight)(x, weight, bias, gain, draw, layout)
    return _Shadow.apply(op, backend, x, weight, bias, gain, draw.key, draw[1:], layout)


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _transformed(
    op: str,
    backend: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    draw: Draw,
    layout: tuple,
) -> Tensor:
    """`apply` within torch.func."""
    if torch.compiler.is_compiling():
        # the compiler would trace the forward alone and lose the gradient
        torch._dynamo.graph_break(msg="torch.func runs shadow ops outside of compiled graphs")
    if backend == "reference":
        return _reference(op, x, weight, bias, gain, draw, layout)
    return _TransformedShadow.apply(op, backend, x, weight, bias, gain, draw.key, draw[1:], layout)


def _called(op: str, backend: str, draw: Draw) -> Callable:
    """The op as a function of structures: torch.ops, with the flat arguments."""
    # the compiler looks through a cache, and says so to the user
    made = _as_function if torch.compiler.is_compiling() else _kept
    return made(op, backend, isinstance(draw.amount, Tensor), False)


def _as_function(op: str, backend: str, scaled: bool, decomposed: bool) -> Callable:
    overload = getattr(getattr(torch.ops.wat_kernels, op + SCALED if scaled else op), backend)
    called, flat = overload.decompose if decomposed else overload, SIGNATURES[op.removesuffix("_bwd")].flat

    def function(
        a: Tensor, b: Tensor, c: Tensor | None, d: Tensor | None, draw: Draw, layout: tuple, *mask: Any
    ) -> Any:
        return called(a, b, c, d, *flat(draw, layout), *mask)

    return function


_kept = cache(_as_function)


def _implementation(op: str, backend: str, draw: Draw, *tensors: Tensor) -> Callable:
    """What runs the op: the backend's own function where it is written in Python and nothing watches, else the op.

    torch's dispatcher takes a third of a small call's time on the host. It is passed through wherever something may ask
    for the op: a compiler, a tracer, a profiler, a dispatch mode (FLOP counters, fake tensors), a tensor subclass, the
    vmap of is_grads_batched.
    """
    function = IMPLEMENTATIONS.get((op, backend))
    watched = (
        function is None
        or isinstance(draw.amount, Tensor)  # the op with a tensor as its amount
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
        or any(type(t) not in PLAIN or torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors)
    )
    return _called(op, backend, draw) if watched or function is None else function


def _reference(op: str, *arguments: Any) -> Tensor:
    """The reference as the operations that it is made of, for torch.func to transform each of them."""
    draw: Draw = arguments[4]
    return _as_function(op, "reference", isinstance(draw.amount, Tensor), True)(*arguments)


class _Shadow(torch.autograd.Function):
    """Saves x, PW, gain and the key. SW, masks and grids are drawn again in the backward pass.

    The table's tensors are held by reference in `drawn`, the draw without its key: they belong to the table and cost
    nothing here. The key is an argument of its own, so that torch.func sees it.
    """

    @staticmethod
    def forward(ctx, op, backend, x, weight, bias, gain, key, drawn, layout):
        ctx.save_for_backward(x, weight, gain, key)
        ctx.op, ctx.backend, ctx.drawn, ctx.layout = op, backend, drawn, layout
        draw = Draw(key, *drawn)
        return _implementation(op, backend, draw, x, weight)(x, weight, bias, gain, draw, layout)

    @staticmethod
    def backward(ctx, dy):
        mask = ctx.needs_input_grad[2:6]
        device = dy.device.type
        with without_autocast(autocast_dtype(device), device):  # backward may be called where autocast is on
            x, weight, gain, key = ctx.saved_tensors  # once: a checkpoint makes them again each time
            given = (ctx.op, ctx.backend, dy, x, weight, gain, key, ctx.drawn, ctx.layout, mask)
            if torch_func.active():
                grads = _TransformedBackward.apply(*given)
            elif forward_ad._current_level >= 0:
                grads = _DualShadowBackward.apply(*given)
            elif torch.is_grad_enabled():
                grads = _ShadowBackward.apply(*given)
            else:
                draw = Draw(key, *ctx.drawn)
                function = _implementation(f"{ctx.op}_bwd", ctx.backend, draw, dy, x, weight)
                grads = function(dy, x, weight, gain, draw, ctx.layout, mask)
        grads = (grad if asked else None for grad, asked in zip(grads, mask, strict=True))
        return None, None, *grads, None, None, None


class _ShadowBackward(torch.autograd.Function):
    """The first derivative as a function of its own, so that higher ones exist for every backend.

    Its derivative is taken of the reference: exact, and not a path where speed counts.
    """

    @staticmethod
    def forward(ctx, op, backend, dy, x, weight, gain, key, drawn, layout, mask):
        ctx.save_for_backward(dy, x, weight, gain, key)
        ctx.op, ctx.drawn, ctx.layout, ctx.mask = op, drawn, layout, mask
        draw = Draw(key, *drawn)
        return _called(f"{op}_bwd", backend, draw)(dy, x, weight, gain, draw, layout, mask)

    @staticmethod
    def _first_derivative(ctx: Any, inputs: Sequence[Tensor | None], key: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        """The reference's gradients as a function of those of dy, x, weight and gain that there are."""

        def first_derivative(*present: Tensor) -> tuple[Tensor, ...]:
            dy, x, weight, gain = _in_place_of(inputs, present)
            return _reference_grads(ctx.op, dy, x, weight, gain, Draw(key, *ctx.drawn), ctx.layout, ctx.mask)

        return first_derivative

    @staticmethod
    def backward(ctx, *grad_grads):
        *inputs, key = ctx.saved_tensors
        first_derivative = _ShadowBackward._first_derivative(ctx, inputs, key)
        pull = torch.func.vjp(first_derivative, *(t for t in inputs if t is not None))[1]
        found = pull(tuple(gg for gg, asked in zip(grad_grads, ctx.mask, strict=True) if asked))
        return None, None, *_in_place_of(inputs, found), None, None, None, None


def _in_place_of(places: Sequence[Tensor | None], found: Sequence[Tensor]) -> list[Any]:
    """`found` where `places` has a tensor, None where it has none."""
    remaining = iter(found)
    return [None if place is None else next(remaining) for place in places]


def _reference_grads(
    op: str,
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    gain: Tensor | None,
    draw: Draw,
    layout: tuple,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    """The reference's gradients for those of x, weight, bias and gain that `mask` asks for, differentiable."""
    inputs = [x, weight, dy.new_zeros(dy.shape[1]), gain]  # dy: (N, O, ...) or (rows, out)

    def forward(*asked: Tensor) -> Tensor:
        given = iter(asked)
        return _reference(op, *(next(given) if m else t for t, m in zip(inputs, mask, strict=True)), draw, layout)

    pull = torch.func.vjp(forward, *(t for t, m in zip(inputs, mask, strict=True) if m))[1]
    return pull(dy)


class _DualShadow(_Shadow):
    """_Shadow within a level of torch.autograd.forward_ad. Not the form of every call: the compiler traces no `jvp`."""

    @staticmethod
    def forward(ctx, op, backend, x, weight, bias, gain, key, drawn, layout):
        ctx.save_for_forward(x, weight, gain, key)
        return _Shadow.forward(ctx, op, backend, x, weight, bias, gain, key, drawn, layout)

    @staticmethod
    def jvp(ctx, _op, _backend, x_t, weight_t, bias_t, gain_t, *_rest):
        """The op is linear in x, in the weight and in the gain, so that its tangent is a sum of calls of itself."""
        x, weight, gain, key = ctx.saved_tensors
        calls = [(x_t, weight, gain), (x, weight_t, gain), (x, weight, gain_t)]
        given = [call for call, tangent in zip(calls, (x_t, weight_t, gain_t), strict=True) if tangent is not None]
        given = given or [(torch.zeros_like(x), weight, gain)]  # the bias alone
        terms = [
            apply(ctx.op, ctx.backend, a, b, bias_t if i == 0 else None, c, Draw(key, *ctx.drawn), ctx.layout)
            for i, (a, b, c) in enumerate(given)
        ]
        return sum(terms[1:], terms[0])


class _DualShadowBackward(_ShadowBackward):
    """_ShadowBackward within a level of torch.autograd.forward_ad."""

    @staticmethod
    def forward(ctx, op, backend, dy, x, weight, gain, key, drawn, layout, mask):
        ctx.save_for_forward(dy, x, weight, gain, key)
        return _ShadowBackward.forward(ctx, op, backend, dy, x, weight, gain, key, drawn, layout, mask)

    @staticmethod
    def jvp(ctx, _op, _backend, *tangents):
        *inputs, key = ctx.saved_tensors
        dy, x, weight, gain = inputs
        first_derivative = _ShadowBackward._first_derivative(ctx, inputs, key)
        moved = tuple(
            torch.zeros_like(t) if tangent is None else tangent
            for t, tangent in zip(inputs, tangents, strict=False)
            if t is not None
        )
        # torch cannot nest forward mode outside of torch.func: the derivative of u -> J^T u, taken in reverse, is J itself
        pull = torch.func.vjp(first_derivative, *(t for t in inputs if t is not None))[1]
        results = (x, weight, dy.new_zeros(dy.shape[1]), gain)
        somewhere = tuple(torch.zeros_like(t) for t, asked in zip(results, ctx.mask, strict=True) if asked)
        found = iter(torch.func.vjp(lambda *u: pull(u), *somewhere)[1](moved))
        # what was not asked for is an empty tensor of x's dtype
        return tuple(next(found) if asked else x.new_zeros(0) for asked in ctx.mask)


class _TransformedShadow(_DualShadow):
    """_Shadow in the form that torch.func can transform: forward without ctx, which setup_context gets.

    Not the form of every call: torch binds the arguments of this one by their signature, which takes longer than the
    forward of a small layer.
    """

    @staticmethod
    def forward(op, backend, x, weight, bias, gain, key, drawn, layout):  # type: ignore[override]
        draw = Draw(key, *drawn)
        return _called(op, backend, draw)(x, weight, bias, gain, draw, layout)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.op, ctx.backend, x, weight, _, gain, key, ctx.drawn, ctx.layout = inputs
        ctx.save_for_backward(x, weight, gain, key)
        ctx.save_for_forward(x, weight, gain, key)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return torch_func.vmap_forward(_TransformedShadow.apply, info.batch_size, in_dims, arguments)


class _TransformedBackward(_DualShadowBackward):
    """_ShadowBackward in the form that torch.func can transform."""

    @staticmethod
    def forward(op, backend, dy, x, weight, gain, key, drawn, layout, mask):  # type: ignore[override]
        draw = Draw(key, *drawn)
        return _called(f"{op}_bwd", backend, draw)(dy, x, weight, gain, draw, layout, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.op, _, dy, x, weight, gain, key, ctx.drawn, ctx.layout, ctx.mask = inputs
        ctx.save_for_backward(dy, x, weight, gain, key)
        ctx.save_for_forward(dy, x, weight, gain, key)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return torch_func.vmap_each(_TransformedBackward.apply, info.batch_size, in_dims, arguments)
