"""Strength over time: how much of its transforms a model is trained with."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from wat_kernels.mixture import check_strength
from watnn.layers import ShadowLayer, shadow_layers


class StrengthScheduler:
    """Sets the strength of every shadow layer of a model, as `torch.optim.lr_scheduler` sets learning rates.

    At strength a, the draw of a layer is the identity with probability 1 - a, and the amount of an elementwise noise is
    a times its own. Draws at strength 1 are those without a scheduler; DOM, export and ensembles draw with the strength
    that is set.

    model:      a converted model; its layers start at once with the strength of epoch 0
    schedule:   what the strength is after n calls of `step`:
                "linear"    start + (end - start) * n / steps, then `end`
                "cosine"    the same along half a cosine
                "constant"  `start` for `steps` calls, then `end`
                a function  of n, from int to a number in [0, 1]; takes no start, end and steps
    steps:      how many calls of `step` the schedule takes, an int >= 1
    start, end: 0 to 1; by default the transform fades out. start=0, end=1 lets it grow
    last_epoch: the n to go on from; -1 starts at 0. As in torch, n counts calls of `step`, whatever these stand for

    Call `step` where a learning-rate scheduler's is called. A backward pass draws what its forward drew also if the
    strength changed in between (of a compiled model torch may refuse it instead); a forward that torch.utils.checkpoint
    repeats has the strength of its repetition. Nothing is built again, and torch.compile does not compile again if the
    scheduler is there before the first call. The amount of a noise is a number on the CPU: a CUDA graph keeps the one it
    was captured with.

    Raises TypeError or ValueError naming the argument; ValueError for a model without shadow layers.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: str | Callable[[int], float] = "linear",
        steps: int | None = None,
        *,
        start: float | None = None,
        end: float | None = None,
        last_epoch: int = -1,
    ):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is {type(model).__name__}; accepted is a torch.nn.Module")
        if callable(schedule):
            if (steps, start, end) != (None, None, None):
                raise ValueError(
                    "steps, start and end come with a schedule that is a name; a function has none of them"
                )
        elif schedule not in _SHAPES:
            raise ValueError(f"schedule={schedule!r}; accepted are {', '.join(map(repr, _SHAPES))} and a function")
        elif not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ValueError(f"steps={steps!r} with schedule={schedule!r}; accepted is an int >= 1")
        if not isinstance(last_epoch, int) or isinstance(last_epoch, bool) or last_epoch < -1:
            raise ValueError(f"last_epoch={last_epoch!r}; accepted is an int >= -1")
        self.model = model
        self.schedule = schedule
        self.steps = steps or 1  # of a function it says nothing
        self.start = 1.0 if start is None else check_strength(start)
        self.end = 0.0 if end is None else check_strength(end)
        self._apply(self._layers(), last_epoch + 1)

    def step(self) -> None:
        """Counts one on and sets the strength of every layer of the model, those converted since included."""
        layers = self._layers()
        strengths = ((name, vars(layer).get("_strength")) for name, layer in layers)  # None: converted since
        changed = [name for name, strength in strengths if strength not in (None, self._last_strength)]
        if changed:
            warnings.warn(
                f"the strength of {changed[0] or 'the model'} (of {len(changed)} layers in all) is not what this "
                "scheduler set; it is set again. Are there two schedulers for one model?",
                stacklevel=2,
            )
        self._apply(layers, self.last_epoch + 1)

    def get_strength(self, epoch: int) -> float:
        """The strength after `epoch` calls of `step`."""
        if callable(self.schedule):
            return check_strength(self.schedule(epoch))
        share = _SHAPES[self.schedule](min(epoch / self.steps, 1.0))
        return share * self.end + (1 - share) * self.start

    def get_last_strength(self) -> float:
        """The strength that is set."""
        return self._last_strength

    def state_dict(self) -> dict[str, Any]:
        """All there is to know but the model and a schedule that is a function."""
        state = {name: getattr(self, name) for name in _STATE}
        if callable(self.schedule):
            del state["schedule"]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned, and sets the model's strength: a model's own state_dict does not hold it.

        Raises ValueError for a dict of other keys.
        """
        expected = {*_STATE} - ({"schedule"} if callable(self.schedule) else set())
        if set(state_dict) != expected:
            raise ValueError(f"state_dict has the keys {sorted(state_dict)}; accepted are {sorted(expected)}")
        layers = self._layers()
        self.__dict__.update(state_dict)
        self._apply(layers, self.last_epoch)

    def _apply(self, layers: list[tuple[str, ShadowLayer]], epoch: int) -> None:
        strength = self.get_strength(epoch)
        for _, layer in layers:
            layer.strength = strength
        self.last_epoch, self._last_strength = epoch, strength

    def _layers(self) -> list[tuple[str, ShadowLayer]]:
        layers = shadow_layers(self.model)
        if not layers:
            raise ValueError(
                f"model {type(self.model).__name__} has no shadow layer; convert it first with watnn.convert"
            )
        return layers


_STATE = ("schedule", "steps", "start", "end", "last_epoch")
# how far from `start` to `end` the strength is, of how far through the schedule
_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: done,
    "cosine": lambda done: (1 - math.cos(math.pi * done)) / 2,
    "constant": lambda done: float(done >= 1),
}
