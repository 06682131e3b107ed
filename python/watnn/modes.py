"""Switching a model between PW and SW."""

from __future__ import annotations

import warnings
from typing import Generic, TypeVar

import torch
from torch import nn

from wat_kernels import philox
from wat_kernels.default_device import on_cpu
from watnn.layers import shadow_layers

Model = TypeVar("Model", bound=nn.Module)
_PURPOSE_LAYER = 2  # counters (layer, 0, 0, 2): rows use purpose 0 and noise 1


class ModeSwitch(Generic[Model]):
    """What `auto`, `aom` and `dom` return. As a `with` block it puts the earlier modes back at the end."""

    def __init__(self, model: Model, mode: str, keys: list[int] | None):
        self._model = model
        self._before = [(layer, layer.mode, layer.dom_key) for _, layer in shadow_layers(model)]
        for index, (layer, _, _) in enumerate(self._before):
            layer.mode, layer.dom_key = mode, None if keys is None else keys[index]

    def __enter__(self) -> Model:
        return self._model

    def __exit__(self, *exception: object) -> None:
        for layer, mode, key in self._before:
            layer.mode, layer.dom_key = mode, key


def auto(model: Model) -> ModeSwitch[Model]:
    """The mode every layer starts in: SW, drawn again, while training; PW in eval(). Warns as `aom` does."""
    _warn_without_layers(model)
    return ModeSwitch(model, "auto", None)


def aom(model: Model) -> ModeSwitch[Model]:
    """Accuracy-oriented mode: every shadow layer computes with PW, also while training, until switched again.

    A call switches for good, `with watnn.aom(model):` for the block. A model without shadow layers computes with PW in any
    mode: nothing is switched then, and a warning says so.
    """
    _warn_without_layers(model)
    return ModeSwitch(model, "aom", None)


def dom(model: Model, key: int | None = None) -> ModeSwitch[Model]:
    """Desire-oriented mode: every shadow layer computes with SW, also in eval().

    key: None for a fresh draw at each forward; an int for the same SW every time. The first layer uses `key` itself,
         each other one a key derived from it and its place, so that layers do not all draw the same row.
    Raises ValueError for a model without shadow layers, TypeError or ValueError for a key that is not a 64-bit int.
    """
    layers = shadow_layers(model)
    if not layers:
        raise ValueError(f"model {type(model).__name__} has no shadow layer; convert it first with watnn.convert")
    return ModeSwitch(model, "dom", None if key is None else layer_keys(key, len(layers)))


def _warn_without_layers(model: nn.Module) -> None:
    if not shadow_layers(model):
        warnings.warn(f"model {type(model).__name__} has no shadow layer; there is no mode to switch", stacklevel=3)


@on_cpu
def layer_keys(key: int, count: int) -> list[int]:
    """Keys for `count` layers: the first is `key` itself, the others are words of its Philox stream."""
    if not isinstance(key, int) or isinstance(key, bool):
        raise TypeError(f"key is {type(key).__name__}; accepted is an int or None")
    if not -(2**63) <= key < 2**63:
        raise ValueError(f"key={key} does not fit 64 bits; accepted is -2**63 <= key < 2**63")
    index = torch.arange(count)
    zero = torch.zeros_like(index)
    low, high, _, _ = philox.philox4x32((index, zero, zero, zero + _PURPOSE_LAYER), philox.split_key(torch.tensor(key)))
    return [key, *((high << 32) | low).tolist()[1:]]
