"""What a trained network is worth as it would be deployed: AOM, and DOM of a few keys."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import watnn
from torch import nn
from torch.optim.swa_utils import update_bn

from .archive import Cifar
from .batches import Normalization, in_order
from .training import accuracy


class Score(NamedTuple):
    """One row of the results.

    mode:       "plain", "AOM" or "DOM"
    key:        of a DOM, else None
    as_trained: per cent right with BatchNorm's running statistics as training left them, averages over the draws
    accuracy:   per cent right with statistics estimated again under the weights in use
    mflop:      millions of operations for one image; of a DOM as exported, its kernels cropped
    """

    mode: str
    key: int | None
    as_trained: float
    accuracy: float
    mflop: float


def evaluate(model: nn.Module, data: Cifar, normalization: Normalization, keys: list[int]) -> list[Score]:
    """Scores of AOM and of DOM with each of `keys`; of a model without shadow layers the one of "plain"."""
    model = copy.deepcopy(model).eval()
    x = normalization(data.test.pixels[:1])
    if not any(isinstance(module, watnn.WATConv2d | watnn.WATLinear) for module in model.modules()):
        return [_score("plain", None, model, nullcontext(), data, normalization, watnn.flops(model, x).dense)]
    scores = [_score("AOM", None, model, watnn.aom(model), data, normalization, watnn.flops(model, x).dense)]
    for key in keys:
        work = watnn.flops(model, x, key=key).exported
        scores.append(_score("DOM", key, model, watnn.dom(model, key), data, normalization, work))
    return scores


def _score(
    mode: str,
    key: int | None,
    model: nn.Module,
    switched: AbstractContextManager,
    data: Cifar,
    normalization: Normalization,
    flops: float,
) -> Score:
    trained = copy.deepcopy(model.state_dict())
    with switched:
        before = accuracy(model, data.test, normalization)
        update_bn((x for x, _ in in_order(data.train, normalization)), model)
        after = accuracy(model, data.test, normalization)
    model.load_state_dict(trained)
    return Score(mode, key, before, after, flops / 1e6)


def draw_keys(count: int, seed: int) -> list[int]:
    """Keys of DOM that the training's own generator has no part in."""
    return torch.randint(10**6, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
