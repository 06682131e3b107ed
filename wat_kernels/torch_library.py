"""The one torch.library namespace of this package, `torch.ops.wat_kernels`."""

from __future__ import annotations

from collections.abc import Callable

import torch

LIBRARY = torch.library.Library("wat_kernels", "DEF")
SCALED = "_scaled"
IMPLEMENTATIONS: dict[tuple[str, str], Callable] = {}  # (op, backend): the function, of those written in Python

# Every op has one schema and one overload per backend, `shadow_conv2d.library` for example: a compiled graph names the
# backend that was chosen, and C++ registers its own overload without passing through Python.
#
# The amount of a noise is a float there, which a compiled graph takes for a constant. `shadow_conv2d_scaled.library` and
# the like take it as a () tensor on the CPU and are otherwise the same, for graphs in which it changes.


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
    """Registers a Python implementation of `op.backend`."""
    LIBRARY.impl(f"{op}.{backend}", function, dispatch_key)
    if backend == "reference":
        LIBRARY.impl(f"{op}{SCALED}.{backend}", function, dispatch_key)
    else:
        IMPLEMENTATIONS[op, backend] = function
