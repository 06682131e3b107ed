"""Notices a layer whose weight the model reads itself, as `self.conv1d.weight`, instead of calling the layer.

Such a model computes with PW whatever the layer's mode is. `convert` looks at the source of the modules that hold the
layers; what that does not show (a call in one branch, a read in another) is noticed when the weight gets its first
gradient in training and the layer has not been called.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import warnings
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from watnn.layers import ShadowLayer

ADVICE = (
    "its transform has no effect then, and what watnn.export gives in DOM differs from watnn.dom: exclude it from the "
    "conversion (watnn.summary(model) shows which layers are called)"
)
_METADATA = ("dtype", "device", "shape", "ndim", "size", "is_meta", "requires_grad")
_hooked: weakref.WeakKeyDictionary[ShadowLayer, weakref.ref[Tensor]] = weakref.WeakKeyDictionary()
_traced = False  # whether torch.compile has seen a shadow layer: its calls are then not counted


@dataclass
class Watch:
    """What is known of one layer that `convert` made. The replicas of nn.DataParallel share their layer's."""

    name: str
    settled: bool = False  # the layer was called, or the warning was given


def note_call(layer: ShadowLayer) -> None:
    """Each forward of a layer says that there was one. An evaluation without gradients says nothing about training."""
    if torch.compiler.is_compiling():
        _note_tracing()
        return
    watch = layer._watch
    if watch is not None and not watch.settled and (layer.training or torch.is_grad_enabled()):
        watch.settled = True


def _note_tracing() -> int:
    """Runs while a graph is made and is not part of it. Identical layers share a graph: it is not known which are called."""
    global _traced
    _traced = True
    return 0


# all that torch.compiler.assume_constant_result does, but that imports the compiler first, which takes seconds
_note_tracing._dynamo_marked_constant = True  # type: ignore[attr-defined]


def watch_weight(layer: ShadowLayer) -> None:
    """Warns when the layer's weight gets a gradient in training and the layer has not been called.

    The hook is on the Parameter that the layer has now: ShadowLayer.train() asks again, because copies, pickles,
    to_empty() and FSDP come with other Parameters.
    """
    weight = layer._parameters.get("weight")
    if layer._watch is None or layer._watch.settled or weight is None or not (weight.is_leaf and weight.requires_grad):
        return
    known = _hooked.get(layer)
    if known is None or known() is not weight:
        _hooked[layer] = weakref.ref(weight)
        hook = _FirstGradient(layer)
        hook.handle = weight.register_post_accumulate_grad_hook(hook)


class _FirstGradient:
    """The hook of one weight; it takes itself off as soon as it knows."""

    handle: Any

    def __init__(self, layer: ShadowLayer):
        self.layer = weakref.ref(layer)

    def __call__(self, weight: Tensor) -> None:
        if torch.compiler.is_compiling():  # compiled autograd: the hook is not part of the graph
            return
        layer = self.layer()
        watch = None if layer is None or layer._parameters.get("weight") is not weight else layer._watch
        if layer is None or watch is None or watch.settled or _traced:
            self.handle.remove()
        elif layer.computes_shadow:
            self.handle.remove()
            watch.settled = True
            warnings.warn(
                f"{watch.name or type(layer).__name__} is a shadow layer that was not called, and its weight got a "
                f"gradient: the model reads the weight itself; {ADVICE}",
                stacklevel=2,
            )


def warn_of_readers(model: nn.Module, chosen: list[str], stacklevel: int) -> None:
    """Warns of those layers among `chosen` whose parent's source reads the weight and never calls the layer."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in chosen:
        path, _, child = name.rpartition(".")
        parent = type(model.get_submodule(path))
        if child in _only_read(parent):  # type: ignore[arg-type]  # mypy: a metaclass's __hash__
            found.setdefault((parent.__name__, child), []).append(name)
    for (parent_name, child), names in found.items():
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        warnings.warn(
            f"{parent_name} reads self.{child}.weight and never calls self.{child} ({listed}); {ADVICE}",
            stacklevel=stacklevel + 1,
        )


@functools.lru_cache(maxsize=1024)
def _only_read(cls: type[Any]) -> frozenset[str]:
    """Names of the children whose weight the methods of `cls` read, and that they use for nothing else."""
    reads, others = set(), set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "torch" or not issubclass(base, nn.Module):
            continue
        for name, method in vars(base).items():
            if inspect.isfunction(method) and "init" not in name and "reset" not in name:
                found = _uses_of_children(_source_tree(method))
                reads |= found[0]
                others |= found[1]
    return frozenset(reads - others)


def _source_tree(method: Any) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(method))))
    except (OSError, TypeError, SyntaxError):  # written in a shell, generated or compiled: no source to look at
        return ast.Module([], [])


def _uses_of_children(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Of self.child, in a method: the children whose .weight is a value there, and those that are called or handed on."""
    holder = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    reads, others = set(), set()
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"):
            continue
        outer = holder[node]
        if not isinstance(outer, ast.Attribute):
            others.add(node.attr)
        elif outer.attr == "weight" and isinstance(outer.ctx, ast.Load):
            further = holder[outer]
            if not (isinstance(further, ast.Attribute) and further.attr in _METADATA):
                reads.add(node.attr)
        else:
            call = holder[outer]
            if isinstance(call, ast.Call) and call.func is outer:  # self.child.forward(x)
                others.add(node.attr)
    return reads, others
