"""What a variant costs: bytes kept for the backward pass, and FLOPs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import watnn
from watnn.demo.digits import Images
from watnn.demo.settings import Settings
from watnn.demo.variants import PLAIN, build_variants


def measure_costs(train: Images, settings: Settings) -> dict[str, dict[str, float | None]]:
    """For each variant:

    saved_bytes:        what one training step keeps for its backward pass, without parameters and buffers
    saved_beyond_plain: the same less the plain network's
    materialised_beyond_plain: as saved_beyond_plain, when SW is a tensor that autograd records (the `reference` backend)
    aom_flops:          of one image's forward with PW
    dom_flops:          of an exported DOM model, averaged over the draws; None for the plain network
    """
    batch = Images(train.x[: settings.batch].contiguous(memory_format=torch.channels_last), train.y[: settings.batch])
    models = build_variants(settings.width, seed=0)
    saved = {name: saved_bytes(model, batch) for name, model in models.items()}
    recorded = build_variants(settings.width, seed=0, backend="reference")
    costs = {}
    for name, model in models.items():
        flops = watnn.flops(model, batch.x[:1])
        plain = name == PLAIN
        costs[name] = {
            "saved_bytes": saved[name],
            "saved_beyond_plain": saved[name] - saved[PLAIN],
            "materialised_beyond_plain": None if plain else saved_bytes(recorded[name], batch) - saved[PLAIN],
            "aom_flops": flops.dense,
            "dom_flops": None if plain else flops.exported,
        }
    return costs


def saved_bytes(model: nn.Module, batch: Images) -> int:
    """Bytes that autograd holds between forward and backward: each storage once, parameters and buffers not."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    held: dict[int, torch.UntypedStorage] = {}  # the storages are kept alive so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        F.cross_entropy(model.train()(batch.x), batch.y)
    return sum(storage.nbytes() for storage in held.values())
