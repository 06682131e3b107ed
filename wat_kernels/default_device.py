"""Tables are made on the CPU, also where a model is built on another default device or on "meta"."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def on_cpu(function: Callable[P, T]) -> Callable[P, T]:
    """`function` with the CPU as its default device, whatever torch.set_default_device or a `with` block says."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return wrapped
