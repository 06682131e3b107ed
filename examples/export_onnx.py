"""A trained model to torch.export and to ONNX: `python examples/export_onnx.py`, with onnx and onnxscript installed."""

from pathlib import Path

import torch
import watnn
from torch import nn
from watnn.transforms import WAT


def export(model: nn.Module, x: torch.Tensor, folder: Path) -> nn.Module:
    """Writes model.pt2 and model.onnx for batches of any size; returns the plain model that both compute.

    model: with shadow layers
    x:     an example input, (N, ...) with N >= 2
    """
    plain = watnn.export(model, mode="dom", key=7)  # or mode="aom"
    any_batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(plain, (x,), dynamic_shapes=any_batch)
    torch.export.save(program, folder / "model.pt2")
    torch.onnx.export(program, dynamo=True, verbose=False).save(folder / "model.onnx")
    return plain


if __name__ == "__main__":
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5)
    )
    export(watnn.convert(network, WAT()), torch.randn(2, 3, 8, 8), Path())
