"""How a network is trained: the official recipe as released, and a modern one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum 0.9, and what the recipes differ in.

    rate:            learning rate; the highest one where it changes
    warmup_epochs:   epochs of linear rise from near zero, before the cosine
    cosine:          the rate falls to zero along half a cosine; otherwise it stays
    augment:         random crop and flip of the training images
    bf16:            autocast to bf16 on a GPU that has it
    """

    rate: float
    nesterov: bool = False
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0
    cosine: bool = False
    augment: bool = False
    label_smoothing: float = 0.0
    bf16: bool = False

    def optimizer(self, model: nn.Module) -> torch.optim.SGD:
        return torch.optim.SGD(
            model.parameters(), self.rate, momentum=0.9, nesterov=self.nesterov, weight_decay=self.weight_decay
        )

    def schedule(self, optimizer: torch.optim.Optimizer, steps_per_epoch: int, epochs: int) -> LambdaLR:
        """To be stepped after every step of the optimizer."""
        warmup, total = self.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            if not self.cosine or total <= warmup:
                return 1.0
            return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2

        return LambdaLR(optimizer, factor)

    def autocasts(self, device: torch.device) -> bool:
        return self.bf16 and device.type == "cuda" and torch.cuda.is_bf16_supported()


RECIPES = {
    "official": Recipe(rate=0.01),
    "modern": Recipe(
        rate=0.1,
        nesterov=True,
        weight_decay=5e-4,
        warmup_epochs=5,
        cosine=True,
        augment=True,
        label_smoothing=0.1,
        bf16=True,
    ),
}
