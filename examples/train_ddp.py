"""Data-parallel training with gradient accumulation: `torchrun --nproc-per-node=2 examples/train_ddp.py`."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
import watnn
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from watnn.transforms import WAT


def train(steps: int = 20, accumulate: int = 2) -> float:
    """Trains to tell images that are brighter on the right; returns the last loss."""
    torch.manual_seed(0)  # one seed for all: the ranks' draws of SW are unlike all the same
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 2))
    model = watnn.convert(model, WAT(), gain="channel")  # first convert, then wrap, then build the optimizer
    model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(steps):
        for micro in range(accumulate):
            label = torch.randint(2, (32,), generator=data)
            x = torch.randn(32, 1, 8, 8, generator=data)
            x[label == 1, :, :, 4:] += 1
            with nullcontext() if micro + 1 == accumulate else model.no_sync():
                loss = F.cross_entropy(model(x), label) / accumulate
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item() * accumulate


if __name__ == "__main__":
    dist.init_process_group("gloo")
    print(f"last loss {train():.3f}")
    dist.destroy_process_group()
