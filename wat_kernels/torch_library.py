"""The one torch.library namespace of this package, `torch.ops.wat_kernels`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from wat_kernels.signature import Signature

LIBRARY = torch.library.Library("wat_kernels", "DEF")
SCALED = "_scaled"
SIGNATURES: dict[str, Signature] = {}  # of the shadow ops, by name
IMPLEMENTATIONS: dict[tuple[str, str], Callable] = {}  # (op, backend): the function, of those written in Python

# Every op has one schema and one overload per backend, `shadow_conv.library` for example: a compiled graph names the
# backend that was chosen, and C++ registers its own overload without passing through Python.
#
# The amount of a noise is a float there, which a compiled graph takes for a constant. `shadow_conv_scaled.library` and
# the like take it as a () tensor on the CPU and are otherwise the same, for graphs in which it changes.


def define_shadow_op(signature: Signature, fake: Callable, fake_backward: Callable, backends: Iterable[str]) -> None:
    """Defines a shadow op and its backward, with one overload for each backend.

    The reference is a composition of differentiable operations and needs no backward of its own.
    """
    SIGNATURES[signature.op] = signature
    for backend in backends:
        define(signature.op, signature.schema, signature.flat_forward(fake), backend)
        if backend != "reference":
            define(f"{signature.op}_bwd", signature.schema_bwd, signature.flat_backward(fake_backward), backend)


def implement_shadow_op(
    op: str,
    backend: str,
    forward: Callable,
    backward: Callable | None = None,
    dispatch_key: str = "CompositeExplicitAutograd",
) -> None:
    """Registers a backend's functions, of a draw and a layout, for the op. backward: None for the reference"""
    signature = SIGNATURES[op]
    implement(op, backend, signature.flat_forward(forward), dispatch_key)
    if backward is not None:
        implement(f"{op}_bwd", backend, signature.flat_backward(backward), dispatch_key)
        IMPLEMENTATIONS[op, backend], IMPLEMENTATIONS[f"{op}_bwd", backend] = forward, backward


def define(op: str, schema: str, fake: Callable, backend: str) -> None:
    """Defines `op.backend` with the schema that all backends of the op share."""
    LIBRARY.define(f"{op}.{backend}{schema}")
    torch.library.register_fake(f"wat_kernels::{op}.{backend}", fake, lib=LIBRARY)
    LIBRARY.define(f"{op}{SCALED}.{backend}{schema.replace('float amount', 'Tensor amount')}")
    if backend == "reference":  # a composition of differentiable operations, with either kind of amount
        return
    torch.library.register_fake(f"wat_kernels::{op}{SCALED}.{backend}", fake, lib=LIBRARY)
    position = schema[: schema.index("float amount")].count(",")  # no argument has a comma of its own

    def scaled(*arguments):
        overload = getattr(getattr(torch.ops.wat_kernels, op), backend)
        return overload(*arguments[:position], arguments[position].item(), *arguments[position + 1 :])

    LIBRARY.impl(f"{op}{SCALED}.{backend}", scaled, "CompositeExplicitAutograd")


def implement(op: str, backend: str, function: Callable, dispatch_key: str = "CompositeExplicitAutograd") -> None:
    """Registers a Python implementation of `op.backend`, of the op's flat arguments."""
    LIBRARY.impl(f"{op}.{backend}", function, dispatch_key)
    if backend == "reference":
        LIBRARY.impl(f"{op}{SCALED}.{backend}", function, dispatch_key)
