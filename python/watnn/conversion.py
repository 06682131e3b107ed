"""Whole models: torch layers to shadow layers and back."""

from __future__ import annotations

import copy
import fnmatch
import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, cast, overload

import torch
from torch import nn
from torch.nn.utils import parametrize

from watnn.distributed import refuse_wrapped
from watnn.layers import SHADOW_CLASSES, ShadowLayer, WATLinear, adopt, as_2d, is_lazy, shadow_layers
from watnn.modes import Model
from watnn.transforms import Transform

logger = logging.getLogger("watnn")

Filter: TypeAlias = "str | type[nn.Module] | Callable[[str, nn.Module], bool]"
# what torch's fused encoder layers, which read the weights of their Linear layers themselves, are switched off with
_FUSED = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
UNWRAP = "take DDP's .module, or load FSDP's full state dict into an unwrapped copy of the model"
_SHADOW_OF = {cls.torch_layer: cls for cls in SHADOW_CLASSES}


def convert(
    model: Model,
    transform: Transform,
    *,
    include: Filter | Iterable[Filter] | None = None,
    exclude: Filter | Iterable[Filter] | None = None,
    gain: str | None = None,
    shadows: int = 1,
    backend: str = "auto",
    inplace: bool = False,
) -> Model:
    """A copy of `model` in which layers redraw their weight; with inplace=True, `model` itself (a bare layer is
    returned anew, sharing its Parameters).

    transform: a watnn transform, for every layer
    include, exclude: a name pattern ("features.*", as in fnmatch), a module type, a predicate (name, module) -> bool,
        or several of those. By default every Conv1d, Conv2d and Linear whose weight the transform can change is
        converted; where the transform has a grid part, only convolutions. A Linear that `include` names gets the grid
        transform on its whole (out, in) matrix
    gain, shadows, backend: as for the layers
    What is left unconverted is said in one line of the logger "watnn".

    Raises TypeError or ValueError, before anything is changed: nothing to convert, a filter that matches nothing, a
    weight that is not a leaf Parameter or is shared between layers, a model wrapped for distributed training.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; accepted is a torch.nn.Module")
    if not isinstance(transform, Transform):
        raise TypeError(f"transform is {type(transform).__name__}; accepted is a watnn.transforms transform")
    refuse_wrapped(model, "convert it first, then wrap it")
    chosen, left = _choose(model, transform, _filters(include, "include"), _filters(exclude, "exclude"))
    if not chosen:
        reasons = (
            "; ".join(f"{name or 'the model itself'}: {why}" for name, why in left[:8]) or "no Conv or Linear layer"
        )
        advice = (
            "; it is converted already: watnn.revert(model) first, or assign another transform to its layers"
            if any(isinstance(module, ShadowLayer) for module in model.modules())
            else ""
        )
        raise ValueError(f"nothing to convert in {type(model).__name__} with {transform!r} ({reasons}){advice}")
    _check_not_shared(model, chosen)
    model = model if inplace else copy.deepcopy(model)
    replacements: dict[int, nn.Module] = {}
    for name in chosen:
        module = model.get_submodule(name)
        replacements[id(module)] = _SHADOW_OF[type(module)].from_module(
            module, transform, gain=gain, shadows=shadows, backend=backend
        )
    if left:
        listed = ", ".join(f"{name} ({why})" for name, why in left[:8]) + (", ..." if len(left) > 8 else "")
        logger.warning("convert: %d layers redraw their weight, %d are left: %s", len(chosen), len(left), listed)
    model = replace_modules(model, replacements)
    _keep_from_fusing(model)
    return model


@overload
def revert(model: ShadowLayer) -> nn.Module: ...
@overload
def revert(model: Model) -> Model: ...
def revert(model: nn.Module) -> nn.Module:
    """Plain torch layers again, in place: the same Parameters, with the gain folded into the weight.

    Returns `model` (for a bare layer, a torch layer that shares its Parameters). After it, model(x) is what AOM gave;
    a gain that AOM leaves out (aom_gain=False) is dropped.
    Raises ValueError, before anything is changed, for a model that is wrapped for distributed training, a parametrized
    layer (remove the parametrization first; `export` does so on its copy), or a gain that would have to be folded into a
    weight that is no Parameter.
    """
    refuse_wrapped(model, UNWRAP)
    layers = shadow_layers(model)
    for name, layer in layers:
        _check_revertible(name, layer)
    replacements: dict[int, nn.Module] = {}
    for _, layer in layers:
        plain = plain_layer(layer)
        if layer.gain is not None and layer.aom_gain:
            with torch.no_grad():
                plain.weight.copy_(layer._plain_weight())
        replacements[id(layer)] = plain
    for module in model.modules():
        if "_fused_as" in vars(module):
            setattr(module, *vars(module).pop("_fused_as"))
    return replace_modules(model, replacements)


def _check_revertible(name: str, layer: ShadowLayer) -> None:
    prefix = f"{name}." if name else ""
    if parametrize.is_parametrized(layer):
        which = ", ".join(prefix + parameter for parameter in layer.parametrizations)
        raise ValueError(
            f"{which} is parametrized; accepted are plain Parameters: "
            "torch.nn.utils.parametrize.remove_parametrizations makes it one"
        )
    if layer.gain is not None and layer.aom_gain and not isinstance(layer._parameters.get("weight"), nn.Parameter):
        raise ValueError(
            f"{prefix}gain cannot be folded into {prefix}weight, which is no Parameter (weight_norm or pruning?); "
            "remove that method first"
        )


def plain_layer(layer: ShadowLayer) -> Any:
    """The torch layer under a shadow layer, sharing its Parameters; the gain is not applied."""
    plain = adopt(layer, layer.torch_layer)
    plain._parameters.pop("gain", None)
    for name in (
        "_transform",
        "_strength",
        "_scaled_noise",
        "noise",
        "shadows",
        "backend",
        "aom_gain",
        "mode",
        "_dom_key",
        "shared_keys",
        "tap_table",
        "matrix_grid",
    ):
        plain.__dict__.pop(name, None)
    return plain


def _keep_from_fusing(model: nn.Module) -> None:
    """In eval(), nn.TransformerEncoderLayer would not call its shadow layers, and no SW would be drawn in DOM."""
    for module in model.modules():
        for cls, (name, off) in _FUSED.items():
            if isinstance(module, cls) and "_fused_as" not in vars(module) and shadow_layers(module):
                vars(module)["_fused_as"] = (name, getattr(module, name))
                setattr(module, name, off)


def replace_modules(model: nn.Module, replacements: dict[int, nn.Module]) -> Any:
    """Puts replacements[id(module)] at every place where `module` stands; returns the model or its own replacement."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in replacements:
                parent._modules[name] = replacements[id(child)]
    return replacements.get(id(model), model)


def _filters(filters: Filter | Iterable[Filter] | None, argument: str) -> list[Filter] | None:
    if filters is None:
        return None
    listed = [filters] if isinstance(filters, str | type) or callable(filters) else list(filters)
    for entry in listed:
        if not isinstance(entry, str) and not callable(entry):
            raise TypeError(f"{argument} has {entry!r}; accepted are name patterns, module types and predicates")
    return listed


def _matches(entry: Filter, name: str, module: nn.Module) -> bool:
    if isinstance(entry, str):
        return fnmatch.fnmatchcase(name, entry)
    return isinstance(module, entry) if isinstance(entry, type) else bool(entry(name, module))


def _choose(
    model: nn.Module, transform: Transform, include: list[Filter] | None, exclude: list[Filter] | None
) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of the layers to convert, and (name, reason) of those that the filters admit and that are left all the same."""
    modules = list(model.named_modules())
    for argument, filters in (("include", include), ("exclude", exclude)):
        for entry in filters or ():
            if not any(_matches(entry, name, module) for name, module in modules):
                raise ValueError(f"{argument} has {entry!r}, which matches no module of {type(model).__name__}")
    chosen, left = [], []
    for name, module in modules:
        if include is not None and not any(_matches(entry, name, module) for entry in include):
            continue
        if exclude is not None and any(_matches(entry, name, module) for entry in exclude):
            continue
        reason = _reason_to_leave(module, transform, named=include is not None)
        if reason is None:
            chosen.append(name)
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.Linear):
            left.append((name, reason))
    return chosen, left


def _reason_to_leave(module: nn.Module, transform: Transform, named: bool) -> str | None:
    """Why `module` cannot or should not redraw its weight; None if it should. `named`: a filter asked for it."""
    if isinstance(module, ShadowLayer):
        return "already a shadow layer"
    if parametrize.is_parametrized(module):
        return "parametrized: convert it first, then parametrize the shadow layer"
    cls = _SHADOW_OF.get(type(module))
    if is_lazy(module):
        return "its weight has no shape yet: call the model once, then convert it"
    if cls is None:
        return f"no shadow layer for {type(module).__name__}"
    if transform.noise is not None and transform.grid is None:
        return None
    if transform.grid is None:
        return "the transform changes nothing"
    if cls is WATLinear:
        return None if named else "a grid transform; name it in include to move the whole matrix"
    kernel = as_2d(cast(tuple[int, ...], module.kernel_size), 1)
    if transform.noise is None and transform.grid.tap_table(kernel).is_identity:
        return f"the transform cannot change a {kernel[0]}x{kernel[1]} kernel"
    return None


def _check_not_shared(model: nn.Module, chosen: list[str]) -> None:
    owners: dict[int, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None:
            continue
        other, owner = owners.setdefault(id(weight), (name, module))
        if owner is not module and (name in chosen or other in chosen):
            raise ValueError(
                f"{other}.weight and {name}.weight are one Parameter; a shadow layer would redraw it for one "
                "of them only: exclude both, or use one module in both places"
            )
    for name in chosen:
        module = model.get_submodule(name)
        if not isinstance(module._parameters.get("weight"), nn.Parameter) or not module.weight.is_leaf:
            raise ValueError(
                f"{name}.weight is not a leaf Parameter (weight_norm or pruning?); convert first and apply "
                "such a method to the shadow layer, or exclude it"
            )
