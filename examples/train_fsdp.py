"""Fully sharded training, all ranks with the same draws: `torchrun --nproc-per-node=2 examples/train_fsdp.py`."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
import watnn
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from watnn.transforms import WAT


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 2))


def train(steps: int = 20) -> nn.Module:
    """Trains to tell images that are brighter on the right; returns a plain model with what was learned."""
    torch.manual_seed(0)
    model = watnn.convert(network(), WAT())
    for module in model:
        if isinstance(module, watnn.WATConv2d):
            fully_shard(module)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.Generator().manual_seed(dist.get_rank())
    for step in range(steps):
        watnn.sync_draws(model, key=step)  # leave this out, and every rank draws its own SW
        label = torch.randint(2, (32,), generator=data)
        x = torch.randn(32, 1, 8, 8, generator=data)
        x[label == 1, :, :, 4:] += 1
        F.cross_entropy(model(x), label).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = network()
    trained.load_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))
    return trained


if __name__ == "__main__":
    dist.init_process_group("gloo")
    print(train())
    dist.destroy_process_group()
