"""Many shadows of one example: a mean and a spread, as Monte Carlo dropout gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from watnn.layers import shadow_layers
from watnn.modes import dom


class Ensemble(NamedTuple):
    """What `ensemble` returns, for a batch of N.

    mean:    (N, ...) over the shadows
    std:     (N, ...) standard deviation over the shadows, with the factor 1 / (S - 1)
    samples: (S, N, ...), one output a shadow, where they were asked for, else None
    """

    mean: Tensor
    std: Tensor
    samples: Tensor | None


def ensemble(
    model: nn.Module,
    x: Tensor | tuple[Any, ...] | Mapping[str, Any],
    shadows: int,
    key: int | None = None,
    *,
    output: Callable[[Any], Tensor] | None = None,
    samples: bool = False,
) -> Ensemble:
    """Evaluates `shadows` shadows of each example in one batched forward: mean and spread of the outputs.

    x:       (N, ...), what the model takes; or a tuple of its arguments, or a mapping of its keyword arguments, in which
             every tensor has the batch as its first dimension and anything else is passed on as it is
    shadows: S >= 2. The batch is repeated S times, so that the model runs once on S * N examples, of which those of
             chunk s see shadow s of every layer. Inside the model too, the batch has to be the first dimension
    key:     None for fresh draws; an int for the same shadows every time, of which the first is the model of
             `watnn.dom(model, key)`
    output:  takes what the model returns to the (S * N, ...) tensor that is averaged, for example
             `lambda y: y.logits.softmax(-1)`. By default: a tensor as it is, and of a mapping (Hugging Face's
             ModelOutput is one) the entry "logits"
    samples: whether to return the outputs of all shadows too

    The model runs in eval(), layers that are not shadow layers as always; modes, shadows and training flags are put back
    at the end, also after an error. Gradients are recorded as ever: use torch.no_grad() where none are needed.
    Raises TypeError or ValueError: no shadow layer, shadows or key out of range, an output that is no tensor or has
    another batch.
    """
    layers = shadow_layers(model)
    if not layers:
        raise ValueError(f"model {type(model).__name__} has no shadow layer; convert it first with watnn.convert")
    if not isinstance(shadows, int) or isinstance(shadows, bool) or shadows < 2:
        raise ValueError(f"shadows={shadows!r}; accepted is an int >= 2: a spread takes two")
    arguments, keywords, batch = _repeated(x, shadows)
    before = [(layer, layer.shadows) for _, layer in layers]
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with dom(model, key):
            for layer, _ in before:
                layer.shadows = shadows
            y = model(*arguments, **keywords)
    finally:
        for layer, count in before:
            layer.shadows = count
        for module, mode in training:
            module.training = mode
    y = _default_output(y) if output is None else output(y)
    if not isinstance(y, Tensor):
        raise TypeError(f"output returned {type(y).__name__}; accepted is a tensor")
    if y.ndim == 0 or len(y) != shadows * batch:
        raise ValueError(
            f"the output has shape {tuple(y.shape)} for a batch of {shadows} * {batch}; accepted is ({shadows * batch}, ...)"
        )
    drawn = y.unflatten(0, (shadows, batch))
    std, mean = torch.std_mean(drawn, dim=0)
    return Ensemble(mean, std, drawn if samples else None)


def _repeated(x: Any, shadows: int) -> tuple[tuple[Any, ...], dict[str, Any], int]:
    """(arguments, keywords, N) of the model, each tensor repeated `shadows` times along its first dimension."""
    arguments = x if isinstance(x, tuple) else () if isinstance(x, Mapping) else (x,)
    keywords = dict(x) if isinstance(x, Mapping) else {}
    tensors = [value for value in (*arguments, *keywords.values()) if isinstance(value, Tensor)]
    if not tensors:
        raise TypeError(f"x is {type(x).__name__}; accepted is a tensor, or a tuple or mapping with tensors")
    sizes = {len(tensor) if tensor.ndim else None for tensor in tensors}
    if len(sizes) > 1 or None in sizes:
        raise ValueError(
            f"x has tensors of shapes {[tuple(t.shape) for t in tensors]}; accepted is one batch first in all"
        )

    def repeat(value: Any) -> Any:
        return torch.cat([value] * shadows) if isinstance(value, Tensor) else value

    return (
        tuple(repeat(value) for value in arguments),
        {name: repeat(value) for name, value in keywords.items()},
        len(tensors[0]),
    )


def _default_output(y: Any) -> Any:
    if isinstance(y, Tensor):
        return y
    if isinstance(y, Mapping) and isinstance(y.get("logits"), Tensor):
        return y["logits"]
    raise TypeError(
        f"the model returned {type(y).__name__}; accepted without `output` is a tensor or a mapping with 'logits': "
        "pass output=, a function that picks the tensor"
    )
