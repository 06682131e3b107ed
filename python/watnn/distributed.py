"""Models on several ranks: the same draws everywhere where that is wanted, and what a wrapped model cannot do."""

from __future__ import annotations

import sys
from typing import Generic

import torch
import torch.distributed as dist
from torch import nn

from watnn.keys import SharedKeys, fresh_key
from watnn.layers import shadow_layers
from watnn.modes import Model, layer_keys


class DrawSwitch(Generic[Model]):
    """What `sync_draws` returns. As a `with` block it puts the earlier way of drawing back at the end."""

    def __init__(self, model: Model, keys: list[int]):
        self._model = model
        self._before = [(layer, layer.shared_keys) for _, layer in shadow_layers(model)]
        for (layer, _), key in zip(self._before, keys, strict=True):
            device = torch.device("cpu") if layer.weight.is_meta else layer.weight.device
            layer.shared_keys = SharedKeys(key, device)

    def __enter__(self) -> Model:
        return self._model

    def __exit__(self, *exception: object) -> None:
        for layer, shared_keys in self._before:
            layer.shared_keys = shared_keys


def sync_draws(model: Model, key: int | None = None) -> DrawSwitch[Model]:
    """From now on all ranks draw the same SW at each forward of `model`, whatever the state of their generators.

    Without it, every rank draws its own, also where all ranks are seeded alike. A call switches for good,
    `with watnn.sync_draws(model):` for the block. Every rank has to make the call, and then the same forwards. Call it
    where the model is on its device; wrapped in DDP or sharded by FSDP or not yet makes no difference.

    key: an int that is the same on all ranks, or None for one that rank 0 draws and sends to the others: 8 bytes, once
         at this call. Forwards communicate nothing: forward n of a layer uses key n of a stream that follows from `key`
         and the layer's place in the model. The count starts at this call, so a run that calls
         `sync_draws(model, key=step)` at each step can be resumed at any step.
    Under activation checkpointing a recomputation is told from a new forward by the state of torch's generator, which
    checkpointing restores; the last 1024 forwards of each layer can be recomputed. Where the checkpoint is inside a
    compiled function, backward has to come before the next forward; torch raises RuntimeError otherwise.
    Raises ValueError for a model without shadow layers, TypeError or ValueError for a key that is not a 64-bit int.
    """
    layers = shadow_layers(model)
    if not layers:
        raise ValueError(f"model {type(model).__name__} has no shadow layer; convert it first with watnn.convert")
    return DrawSwitch(model, layer_keys(_agreed_key() if key is None else key, len(layers)))


def _agreed_key() -> int:
    """What rank 0 draws. Every rank draws, so that generators which agree still do afterwards."""
    drawn = [int(fresh_key(torch.device("cpu")))]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(drawn, src=0)
    return drawn[0]


def refuse_wrapped(model: nn.Module, remedy: str) -> None:
    """ValueError with `remedy` where `model`, or a part of it, is wrapped for data-parallel training."""
    wrappers: list[type] = [nn.parallel.DistributedDataParallel, nn.DataParallel]
    fsdp = sys.modules.get("torch.distributed.fsdp")  # half a second to import, and without it nothing is wrapped in it
    if fsdp is not None:
        wrappers += [fsdp.FSDPModule, fsdp.FullyShardedDataParallel]
    for name, module in model.named_modules():
        for wrapper in wrappers:
            if isinstance(module, wrapper):
                raise ValueError(f"{f'model.{name}' if name else 'model'} is wrapped in {wrapper.__name__}; {remedy}")
