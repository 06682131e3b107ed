"""The ops within torch.func: vmap is a loop, or one call with a larger batch where only x is batched.

A vmapped key means as many weights as there are keys: each is one call of the op, which draws its own. It is not
`shadows` of one call, whose draws come from one key and the number of the shadow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wat_kernels.signature import Draw

_X, _DRAWN = 2, 7  # places in (op, backend, x, weight, bias, gain, key, the draw without its key, layout)
_SHADOWS = Draw._fields.index("shadows") - 1  # the place in a draw without its key


def active() -> bool:
    """Whether this runs within vmap, grad or another transform of torch.func."""
    return torch._C._are_functorch_transforms_active()


def suspended() -> contextlib.AbstractContextManager:
    """A block whose new tensors belong to no transform, and so may be kept when the transform is over."""
    return torch._C._DisableFuncTorch() if active() else contextlib.nullcontext()


def vmap_forward(function: Callable, size: int, in_dims: tuple, arguments: tuple) -> tuple[Any, Any]:
    """The forward op for each of `size` elements along the batched dimensions, as torch's vmap staticmethod returns it."""
    if any(dim is not None for dim in (*in_dims[:_X], *in_dims[_X + 1 : _DRAWN])):
        return vmap_each(function, size, in_dims, arguments)
    x, shadows = arguments[_X].movedim(in_dims[_X], 0), arguments[_DRAWN][_SHADOWS]
    chunk = x.shape[1] // shadows
    # (size, shadows * chunk, ...) -> (shadows * size * chunk, ...): each shadow keeps its rows of every element
    folded = x.unflatten(1, (shadows, chunk)).transpose(0, 1).flatten(0, 2)
    y = function(*arguments[:_X], folded, *arguments[_X + 1 :])
    return y.unflatten(0, (shadows, size, chunk)).transpose(0, 1).flatten(1, 2), 0


def vmap_each(function: Callable, size: int, in_dims: tuple, arguments: tuple) -> tuple[Any, Any]:
    """`function` called for each of `size` elements along the batched dimensions, its results stacked."""
    if size == 0:
        raise ValueError("vmap over 0 elements; accepted is at least one")
    results = [
        function(*(a.select(dim, i) if isinstance(dim, int) else a for a, dim in zip(arguments, in_dims, strict=True)))
        for i in range(size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])
