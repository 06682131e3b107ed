"""What the shadow ops have in common: their arguments as two structures, and as the flat list that torch.library wants.

    forward(x, weight, bias, gain, draw, layout) -> y
    backward(dy, x, weight, gain, draw, layout, mask) -> (dx, dweight, dbias, dgain)

`Draw` says what is drawn, a layout (`ops.conv.Convolution`, `ops.linear.Linear`) how the operation is laid out. Backends,
autograd, fakes and FLOP formulas see these. The flat list, `torch.ops.wat_kernels.<op>.<backend>`, is made of their fields
here and nowhere else: a field more is an argument more in every schema.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]

_TYPES = {Tensor: "Tensor", int: "int", float: "float", bool: "bool", tuple[int, ...]: "int[]"}


class Draw(NamedTuple):
    """What is drawn.

    key:     () int64
    table:   the tensors of what a row is drawn from, on the key's device: `TableTensors`, `MatrixGridTensors`; None where
             the weight stays where it is
    shadows: chunks of the batch, each with a draw of its own
    noise, amount: kind and amount of the noise on each element of SW, as `Noise` numbers them; 0 is none. The amount is a
             () tensor in a graph in which it changes
    """

    key: Tensor
    table: Any
    shadows: int = 1
    noise: int = 0
    amount: float = 0.0


class Signature(NamedTuple):
    """The flat arguments of one op.

    op:     its name; its backward is op + "_bwd"
    table:  the NamedTuple type of `Draw.table`
    layout: the NamedTuple type of the layout
    optional: whether `Draw.table` may be None
    """

    op: str
    table: type[tuple]
    layout: type[tuple]
    optional: bool = False

    @property
    def schema(self) -> str:
        return f"(Tensor x, Tensor weight, Tensor? bias, Tensor? gain, {self._drawn}) -> Tensor"

    @property
    def schema_bwd(self) -> str:
        results = ", ".join(["Tensor"] * 4)
        return f"(Tensor dy, Tensor x, Tensor weight, Tensor? gain, {self._drawn}, bool[4] mask) -> ({results})"

    @property
    def _drawn(self) -> str:
        """Of what comes after the tensors: key, table, layout, then the numbers of the draw."""
        numbers = [field for field in _fields(Draw) if field[0] not in ("key", "table")]
        table = [(name, kind | None if self.optional else kind) for name, kind in _fields(self.table)]
        fields = [("key", Tensor), *table, *_fields(self.layout), *numbers]
        return ", ".join(f"{_type_name(kind)} {name}" for name, kind in fields)

    def flat(self, draw: Draw, layout: tuple) -> tuple:
        """draw and layout as the op's arguments after the tensors."""
        table = draw[1]
        if table is None:
            table = (None,) * len(self.table._fields)  # type: ignore[attr-defined]
        return (draw[0], *table, *layout, *draw[2:])

    def structured(self, flat: Sequence[Any]) -> tuple[Draw, Any]:
        """The way back."""
        tables, layouts = len(self.table._fields), len(self.layout._fields)  # type: ignore[attr-defined]
        table, layout, numbers = (
            flat[1 : 1 + tables],
            flat[1 + tables : 1 + tables + layouts],
            flat[1 + tables + layouts :],
        )
        drawn = None if self.optional and table[0] is None else self.table(*table)
        # lists, as the dispatcher makes them, have no hash
        return Draw(flat[0], drawn, *numbers), self.layout(*(tuple(v) if isinstance(v, list) else v for v in layout))

    def flat_forward(self, forward: Callable) -> Callable:
        """`forward` as the op calls it."""

        def called(x, weight, bias, gain, *flat):
            return forward(x, weight, bias, gain, *self.structured(flat))

        return called

    def flat_backward(self, backward: Callable) -> Callable:
        """`backward` as the op calls it."""

        def called(dy, x, weight, gain, *flat):
            return backward(dy, x, weight, gain, *self.structured(flat[:-1]), flat[-1])

        return called


def _fields(structure: type) -> list[tuple[str, Any]]:
    return list(typing.get_type_hints(structure).items())


def _type_name(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        (kind,) = (one for one in typing.get_args(kind) if one is not type(None))
        return f"{_TYPES[kind]}?"
    return _TYPES[kind]


def gradients(x: Tensor, *found: Tensor | None) -> Gradients:
    """dx, dweight, dbias and dgain as an op returns them: an empty tensor of x's dtype in place of each None."""
    dx, dweight, dbias, dgain = (x.new_empty(0) if grad is None else grad for grad in found)
    return dx, dweight, dbias, dgain


def gain_gradient(each: Tensor, gain: Tensor) -> Tensor:
    """The gradient of `gain`, of one element or (O,). each: (O,) or (terms, O) fp32, what each output adds to it"""
    if gain.numel() == 1:
        each = each.sum()
    elif each.ndim == 2:
        each = each.sum(0)
    return each.reshape(gain.shape).to(gain.dtype)


def gain_kind(gain: Tensor | None) -> int:
    """As kernels take it: 0 none, 1 one number, 2 one for each output."""
    return 0 if gain is None else 1 if gain.numel() == 1 else 2
