"""Mixed precision, and a run that goes on where it was stopped, bit for bit: `python examples/train_resume.py`."""

from pathlib import Path

import torch
import torch.nn.functional as F
import watnn
from torch import nn
from watnn.transforms import WAT


def train(steps: int, path: Path, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """Trains up to step `steps`, from the checkpoint at `path` if there is one, and leaves one there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 64, 2))
    model = watnn.convert(model, WAT(), gain="channel").to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler}
    first = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["generator"])  # all that a draw depends on; on a GPU also torch.cuda's
        first = saved["step"]
    for _ in range(first, steps):
        label = torch.randint(2, (32,)).to(device)
        x = torch.randn(32, 1, 8, 8).to(device)
        x[label == 1, :, :, 4:] += 1
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(model(x), label)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({**state, "generator": torch.get_rng_state(), "step": steps}, path)
    return model


if __name__ == "__main__":
    train(20, Path("checkpoint.pt"))
