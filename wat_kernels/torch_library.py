"""The one torch.library namespace of this package, `torch.ops.wat_kernels`."""

from __future__ import annotations

from collections.abc import Callable

import torch

LIBRARY = torch.library.Library("wat_kernels", "DEF")

# Every op has one schema and one overload per backend, `shadow_conv2d.library` for example: a compiled graph names the
# backend that was chosen, and C++ registers its own overload without passing through Python.


def define(op: str, schema: str, fake: Callable, backend: str) -> None:
    """Defines `op.backend` with the schema that all backends of the op share."""
    LIBRARY.define(f"{op}.{backend}{schema}")
    torch.library.register_fake(f"wat_kernels::{op}.{backend}", fake, lib=LIBRARY)


def implement(op: str, backend: str, function: Callable, dispatch_key: str = "CompositeExplicitAutograd") -> None:
    """Registers a Python implementation of `op.backend`."""
    LIBRARY.impl(f"{op}.{backend}", function, dispatch_key)
