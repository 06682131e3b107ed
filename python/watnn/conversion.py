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

from watnn.bypass import Watch, warn_of_readers, watch_weight
from watnn.distributed import refuse_wrapped
from watnn.layers import SHADOW_CLASSES, ShadowLayer, WATLinear, adopt, as_image, is_lazy, shadow_layers
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
    returned again, sharing its Parameters).

    transform: a watnn transform, for every layer
    include, exclude: a name pattern ("features.*", as in fnmatch), a module type, a predicate (name, module) -> bool,
        or several of those. By default every Conv1d, Conv2d and Linear whose weight the transform can change is
        converted; where the transform has a grid part, only convolutions. A Linear that `include` names gets the grid
        transform on its whole (out, in) matrix. A layer whose weight is one Parameter with something else (an lm_head
        tied to its embedding) is converted where `include` names it: it redraws the weight, the other reads PW, and
        they stay tied
    gain, shadows, backend: as for the layers
    How many layers are left unconverted, and why, is said in one line of the logger "watnn"; `watnn.summary` lists them.
    A warning names layers whose weight the model's code reads without calling them.

    Raises TypeError or ValueError, before anything is changed: nothing to convert, a filter that matches nothing, a
    weight that is not a leaf Parameter, a model wrapped for distributed training.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; accepted is a torch.nn.Module")
    if not isinstance(transform, Transform):
        raise TypeError(f"transform is {type(transform).__name__}; accepted is a watnn.transforms transform")
    refuse_wrapped(model, "convert it first, then wrap it")
    chosen, left = _choose(model, transform, _filters(include, "include"), _filters(exclude, "exclude"))
    if not chosen:
        reasons = "; ".join(
            ", ".join(name or "the model itself" for name in names[:3])
            + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            + f": {why}"
            for why, names in _by_reason(left)
        )
        advice = (
            "; it is converted already: watnn.revert(model) first, or assign another transform to its layers"
            if any(isinstance(module, ShadowLayer) for module in model.modules())
            else ""
        )
        raise ValueError(
            f"nothing to convert in {type(model).__name__} with {transform!r} ({reasons or 'no Conv or Linear layer'}){advice}"
        )
    _check_leaves(model, chosen)
    warn_of_readers(model, chosen, stacklevel=2)
    shared = shared_weights(model)
    model = model if inplace else copy.deepcopy(model)
    replacements: dict[int, nn.Module] = {}
    for name in chosen:
        module = model.get_submodule(name)
        layer = _SHADOW_OF[type(module)].from_module(module, transform, gain=gain, shadows=shadows, backend=backend)
        if name not in shared:  # there, a gradient does not say that the layer is used
            layer._watch = Watch(name)
            watch_weight(layer)
        replacements[id(module)] = layer
    model = replace_modules(model, replacements)
    _keep_from_fusing(model)
    if left:
        vars(model)["_watnn_left"] = {**vars(model).get("_watnn_left", {}), **dict(left)}
        listed = ", ".join(
            f"{names[0] or 'the model itself' if len(names) == 1 else len(names)} ({why})"
            for why, names in _by_reason(left)[:6]
        )
        logger.warning(
            "convert: %d layers redraw their weight, %d are left: %s; see watnn.summary(model)",
            len(chosen),
            len(left),
            listed,
        )
    return model


def _by_reason(left: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """(reason, names) of what is left, the most frequent reason first."""
    names: dict[str, list[str]] = {}
    for name, why in left:
        names.setdefault(why, []).append(name)
    return sorted(names.items(), key=lambda entry: -len(entry[1]))


def reasons_left(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """(name, module, reason) of each layer with a matrix or kernel for a weight that the filters admitted and `convert` left.

    Empty for a model that `convert` did not make. The reasons travel with copies and pickles of the model.
    """
    found = []
    for path, root in model.named_modules():
        modules = dict(root.named_modules()) if "_watnn_left" in vars(root) else {}
        for name, why in vars(root).get("_watnn_left", {}).items():
            if name in modules and not isinstance(modules[name], ShadowLayer):
                found.append((".".join(filter(None, (path, name))), modules[name], why))
    return found


def shared_weights(model: nn.Module) -> dict[str, str]:
    """For each module whose weight is one Parameter with something else: its name, and the name of that other."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(f"{path}.{attribute}" if path else attribute)
    shared = {}
    for names in owners.values():
        for name in names if len(names) > 1 else ():
            path, _, attribute = name.rpartition(".")
            if attribute == "weight":
                shared[path] = next(other for other in names if other != name)
    return shared


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
    weight that is no Parameter, or is one Parameter with something else (`export` gives the layer a weight of its own).
    """
    refuse_wrapped(model, UNWRAP)
    layers = shadow_layers(model)
    shared = shared_weights(model)
    for name, layer in layers:
        _check_revertible(name, layer, shared.get(name))
    replacements: dict[int, nn.Module] = {}
    for _, layer in layers:
        plain = plain_layer(layer)
        if folds_gain(layer):
            with torch.no_grad():
                plain.weight.copy_(layer._plain_weight())
        replacements[id(layer)] = plain
    for module in model.modules():
        vars(module).pop("_watnn_left", None)
        if "_fused_as" in vars(module):
            setattr(module, *vars(module).pop("_fused_as"))
    return replace_modules(model, replacements)


def folds_gain(layer: ShadowLayer) -> bool:
    """Whether AOM, and so the plain layer, has the gain in its weight."""
    return layer.gain is not None and layer.aom_gain


def _check_revertible(name: str, layer: ShadowLayer, shared_with: str | None) -> None:
    prefix = f"{name}." if name else ""
    if parametrize.is_parametrized(layer):
        which = ", ".join(prefix + parameter for parameter in layer.parametrizations)
        raise ValueError(
            f"{which} is parametrized; accepted are plain Parameters: "
            "torch.nn.utils.parametrize.remove_parametrizations makes it one"
        )
    if folds_gain(layer) and shared_with is not None:
        raise ValueError(
            f"{prefix}gain cannot be folded into {prefix}weight, which is one Parameter with {shared_with}; "
            "watnn.export gives a copy in which the layer has a weight of its own"
        )
    if folds_gain(layer) and not isinstance(layer._parameters.get("weight"), nn.Parameter):
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
        "_watch",
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
    shared = shared_weights(model)
    for name, module in modules:
        if include is not None and not any(_matches(entry, name, module) for entry in include):
            continue
        if exclude is not None and any(_matches(entry, name, module) for entry in exclude):
            continue
        reason = _reason_to_leave(module, transform, named=include is not None)
        if reason is None and include is None and name in shared:
            reason = f"one Parameter with {shared[name]}; name it in include to redraw it here only"
        if reason is None:
            chosen.append(name)
        elif _has_matrix(module):
            left.append((name, reason))
    return chosen, left


def _has_matrix(module: nn.Module) -> bool:
    """Whether `module` has a weight of its own that one could think of redrawing; the scale of a norm is none."""
    return parametrize.is_parametrized(module) or any(
        "weight" in name and parameter is not None and (is_lazy(module) or parameter.ndim > 1)
        for name, parameter in module._parameters.items()
    )


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
    kernel = as_image(cast(tuple[int, ...], module.kernel_size))
    if transform.noise is None and transform.grid.tap_table(kernel).is_identity:
        return f"the transform cannot change a {kernel[0]}x{kernel[1]} kernel"
    return None


def _check_leaves(model: nn.Module, chosen: list[str]) -> None:
    for name in chosen:
        module = model.get_submodule(name)
        if not isinstance(module._parameters.get("weight"), nn.Parameter) or not module.weight.is_leaf:
            raise ValueError(
                f"{name}.weight is not a leaf Parameter (weight_norm or pruning?); convert first and apply "
                "such a method to the shadow layer, or exclude it"
            )
