"""A small layer of each kind, for tests that run all kernels: the op with a key, the module, and inputs on the GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import watnn
from torch import Tensor
from watnn.transforms import WAT, Compose, DropConnect

from tests.gpu.gpu_backends import DENSE, DEPTHWISE, LINEAR, fused
from wat_kernels import Noise, shadow_conv2d, shadow_linear

TABLE, NOISE = WAT().tap_table(3), Noise("dropconnect", 0.3)


@dataclass(frozen=True)
class Kind:
    """kind: "conv", "depthwise" or "linear"; backend: one that runs it here."""

    kind: str
    backend: str

    def __str__(self) -> str:
        return f"{self.kind}-{self.backend}"

    def inputs(self, channels: int = 16, size: int = 8, rows: int = 4) -> tuple[Tensor, Tensor]:
        """x (rows, channels, size, size) and weight (channels, channels or 1, 3, 3); x (rows, channels) and (channels, channels)."""
        image = self.kind != "linear"
        x = torch.randn(rows, channels, *([size, size] if image else []), device="cuda")
        per_output = 1 if self.kind == "depthwise" else channels
        weight = torch.randn(channels, per_output, *([3, 3] if image else []), device="cuda")
        return (x.to(memory_format=torch.channels_last) if image else x), weight

    def __call__(self, x: Tensor, weight: Tensor, key: int | Tensor, backend: str | None = None) -> Tensor:
        """The op on `backend`, its own where none is named. Shapes as `inputs` gives them."""
        backend = backend or self.backend
        if self.kind == "linear":
            return shadow_linear(x, weight, key=key, noise=NOISE, backend=backend)
        groups = len(weight) if self.kind == "depthwise" else 1
        return shadow_conv2d(x, weight, table=TABLE, key=key, noise=NOISE, padding=1, groups=groups, backend=backend)

    def layer(self, channels: int = 16) -> torch.nn.Module:
        """The module that computes the same, on the GPU."""
        if self.kind == "linear":
            return watnn.WATLinear(channels, channels, transform=DropConnect(0.3), backend=self.backend, device="cuda")
        groups = channels if self.kind == "depthwise" else 1
        transform = Compose([WAT(), DropConnect(0.3)])
        return watnn.WATConv2d(channels, channels, 3, padding=1, groups=groups, transform=transform,
                               backend=self.backend, device="cuda")  # fmt: skip


KINDS = [
    *(Kind("conv", backend) for backend in fused("shadow_conv", DENSE)),
    *(Kind("depthwise", backend) for backend in fused("shadow_conv", DEPTHWISE)),
    *(Kind("linear", backend) for backend in fused("shadow_linear", LINEAR)),
]
TRITON_KINDS = [kind for kind in KINDS if kind.backend == "triton"]
