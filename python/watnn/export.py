"""From a model with shadow layers to one of plain torch modules."""

from __future__ import annotations

import copy
import warnings
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wat_kernels import draw_key
from wat_kernels.draw import as_key, draw_rows_from
from wat_kernels.ops.conv import reference as conv_reference
from wat_kernels.ops.conv.geometry import resolve_padding
from wat_kernels.ops.conv.library import Box, active_box, cropped_padding
from wat_kernels.ops.linear import reference as linear_reference
from wat_kernels.signature import Draw
from watnn.conversion import UNWRAP, folds_gain, plain_layer, replace_modules, revert, shared_weights
from watnn.distributed import refuse_wrapped
from watnn.layers import ShadowConv, ShadowLayer, WATLinear, shadow_layers
from watnn.modes import Model, layer_keys


def shadow_weight(layer: ShadowLayer, key: int | Tensor) -> Tensor:
    """SW that `key` draws for a layer, as a tensor to look at; without the gain.

    Returns the shape of layer.weight; with layer.shadows > 1, (shadows, *that). Differentiable.
    Raises TypeError when `layer` is no shadow layer or `key` no int and no int64 tensor with one element.
    """
    if not isinstance(layer, ShadowLayer):
        raise TypeError(f"layer is {type(layer).__name__}; accepted is a shadow layer such as WATConv2d")
    key = as_key(key, layer.weight.device)
    noise = (layer.noise.code, layer.noise.amount) if layer.noise is not None else (0, 0.0)
    if isinstance(layer, WATLinear):
        grid = None if layer.matrix_grid is None else layer.matrix_grid.on(layer.weight.device)
        weights = linear_reference.shadow_weights(layer.weight, Draw(key, grid, layer.shadows, *noise))
    else:
        assert isinstance(layer, ShadowConv)
        table = layer.tap_table.on(layer.weight.device)
        weights = conv_reference.shadow_weights(layer.weight, Draw(key, table, layer.shadows, *noise))
    weights = weights.view(layer.shadows, *layer.weight.shape)
    return weights if layer.shadows > 1 else weights[0]


@overload
def export(model: ShadowLayer, mode: str = "aom", key: int | None = None, *, crop: bool = True) -> nn.Module: ...
@overload
def export(model: Model, mode: str = "aom", key: int | None = None, *, crop: bool = True) -> Model: ...
def export(model: nn.Module, mode: str = "aom", key: int | None = None, *, crop: bool = True) -> nn.Module:
    """A copy of `model` for inference, made of plain torch modules only, in eval().

    mode: "aom", PW with the gain folded in; or "dom", the SW of one draw with the gain folded in, where a kernel is
          really cropped to the box of its active taps: an `nn.Conv2d` of a smaller kernel, after an
          `nn.ZeroPad2d` where the padding that is left is uneven
    key:  for "dom": the key of `watnn.dom(model, key)`, whose outputs the exported model gives. By default the key that
          the model is in DOM with, else a fresh draw
    crop: False keeps every kernel whole, zeros included: for models whose own code looks at their convolutions, as those
          that pad the input by `conv.kernel_size` or read `conv.weight.dtype` (MobileNetV2 and ViT of transformers)
    A parametrized weight (weight_norm, spectral_norm) is exported as the weight it stands for.
    A weight that the layer shares with something else (an lm_head with its embedding) is untied where it changes: in DOM,
    and where a gain is folded in; a warning says so.
    A layer with shadows > 1 is exported with its first shadow, which is the one that shadows=1 gives, and a warning says
    so.
    Raises ValueError for another mode, a key with mode="aom", DOM of a model without shadow layers, or a model that is
    wrapped for distributed training.
    """
    if mode not in ("aom", "dom"):
        raise ValueError(f"mode={mode!r}; accepted are 'aom' and 'dom'")
    if mode == "aom" and key is not None:
        raise ValueError(f"key={key} with mode='aom'; PW has no draw")
    refuse_wrapped(model, UNWRAP)
    layers = shadow_layers(model)
    if mode == "dom" and not layers:
        raise ValueError(f"model {type(model).__name__} has no shadow layer; convert it first with watnn.convert")
    copied = copy.deepcopy(model).eval()
    for _, layer in shadow_layers(copied):
        _bake_parametrizations(layer)
    shared = shared_weights(copied)
    untied = {
        name: layer
        for name, layer in shadow_layers(copied)
        if name in shared and (folds_gain(layer) if mode == "aom" else layer.transform is not None)
    }
    for layer in untied.values():
        layer.weight = nn.Parameter(layer.weight.detach().clone(), layer.weight.requires_grad)
    if untied:
        name = next(iter(untied))
        warnings.warn(
            f"{name}.weight was one Parameter with {shared[name]} ({len(untied)} such layers) and has values of its own in "
            "the export; save it as a model without tied weights",
            stacklevel=2,
        )
    if mode == "aom":
        return revert(copied)
    keys = _dom_keys(layers, key)
    chunked = [(name, layer.shadows) for name, layer in layers if layer.shadows > 1]
    if chunked:
        warnings.warn(
            f"{chunked[0][0] or 'the model'} has shadows={chunked[0][1]} ({len(chunked)} layers with shadows > 1): each "
            "chunk of the batch has its own SW, an exported layer has one; it is the first, that of shadows=1",
            stacklevel=2,
        )
    replacements = {
        id(layer): _dom_layer(layer, k, crop)
        for (_, layer), k in zip(shadow_layers(copied), keys, strict=True)
        if layer.transform is not None
    }
    return revert(replace_modules(copied, replacements)).eval()


def _bake_parametrizations(layer: ShadowLayer) -> None:
    """Makes what is parametrized in `layer` a Parameter of its present value.

    Not by torch's remove_parametrizations: that takes the property off the class, which a copy shares with its model.
    """
    if parametrize.is_parametrized(layer):
        values = {name: getattr(layer, name).detach().clone() for name in layer.parametrizations}
        layer.__class__ = type(layer).__bases__[0]
        del layer.parametrizations
        for name, value in values.items():
            layer.register_parameter(name, nn.Parameter(value))


def _dom_keys(layers: list[tuple[str, ShadowLayer]], key: int | None) -> list[int]:
    current = [layer.dom_key for _, layer in layers if layer.dom_key is not None]
    if key is None and len(current) == len(layers):
        return current
    return layer_keys(int(draw_key()) if key is None else key, len(layers))


def _dom_layer(layer: ShadowLayer, key: int, crop: bool) -> nn.Module:
    """The torch module that computes what `layer` computes with the first SW of `key`."""
    with torch.no_grad():
        weight = shadow_weight(layer, key)
        weight = weight[0] if layer.shadows > 1 else weight
        if layer.gain is not None:
            weight = weight * layer.gain.reshape(-1, *[1] * (weight.ndim - 1)).to(weight.dtype)
        plain = plain_layer(layer)
        if isinstance(layer, WATLinear) or not crop:
            plain.weight = nn.Parameter(weight.contiguous())
            return plain
        assert isinstance(layer, ShadowConv)
        return _cropped(layer, plain, weight, dom_box(layer, key))


def dom_box(layer: ShadowConv, key: int) -> Box | None:
    """The box of active taps of the first row that `key` draws for a convolution; None if no tap is active."""
    table = layer.tap_table.on(torch.device("cpu"))
    row = int(draw_rows_from(table.thresholds, as_key(key), layer.shadows)[0])
    return row_box(layer, row)


def row_box(layer: ShadowConv, row: int) -> Box | None:
    """The box of active taps of one row of a convolution's table."""
    line = layer.tap_table.on(torch.device("cpu")).taps[row]
    return active_box(line[1 : 1 + int(line[0])].tolist(), layer.kernel_size)


def _cropped(layer: ShadowConv, plain: Any, weight: Tensor, box: Box | None) -> nn.Module:
    """`plain` with the part of `weight` inside `box`, and the padding that makes it give the same."""
    kernel, dilation = layer.kernel_size, layer.dilation
    padding = resolve_padding(layer.padding, kernel, layer.stride, dilation)
    modules: list[nn.Module] = []
    if layer.padding_mode != "zeros" and any(padding):
        modules.append(_padding_module(layer.padding_mode, padding))
        padding = (0,) * len(padding)
    if box is None:  # one tap of zeros gives the zeros that no tap would
        box, weight = Box((0,) * len(kernel), (0,) * len(kernel)), torch.zeros_like(weight)
    for axis, (first, size) in enumerate(zip(box.first, box.size, strict=True), 2):
        weight = weight.narrow(axis, first, size)
    padding = cropped_padding(padding, box, kernel, dilation)
    before = padding[::2]
    if before != padding[1::2] or min(before) < 0:
        modules.append(_padding_module("zeros", padding))
        before = (0,) * len(before)
    plain.padding = before
    plain.padding_mode = "zeros"
    plain.kernel_size = box.size
    plain._reversed_padding_repeated_twice = [p for p in reversed(plain.padding) for _ in range(2)]
    plain.weight = nn.Parameter(weight.contiguous())
    return nn.Sequential(*modules, plain) if modules else plain


_PADDINGS = {"zeros": "ZeroPad", "reflect": "ReflectionPad", "replicate": "ReplicationPad", "circular": "CircularPad"}


def _padding_module(mode: str, padding: tuple[int, ...]) -> nn.Module:
    """padding: before and behind of each axis; torch's modules take the last axis first"""
    module = getattr(nn, f"{_PADDINGS[mode]}{len(padding) // 2}d")
    return module(tuple(part for at in range(len(padding) - 2, -1, -2) for part in padding[at : at + 2]))
