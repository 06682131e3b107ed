"""Training all variants of one seed side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from watnn.demo.digits import Digits, Images
from watnn.demo.evaluation import accuracy, deployed
from watnn.demo.settings import Settings
from watnn.demo.variants import build_variants

_WARM_UP_STEPS = 5  # of each training, left out of the times


@dataclass
class Run:
    """One variant being trained: its model and what was recorded.

    loss: mean of each epoch. curve: (epoch, test accuracy in AOM). step_seconds: of each step after the warm-up
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    random_state: Tensor
    loss: list[float] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)

    def step(self, x: Tensor, y: Tensor) -> float:
        """One step on x (B, 1, 8, 8), y (B,); returns the loss.

        Each run has the default generator to itself while it steps: what one variant draws changes no other.
        """
        torch.set_rng_state(self.random_state)
        start = time.perf_counter()
        loss = F.cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.step_seconds.append(time.perf_counter() - start)
        self.random_state = torch.get_rng_state()
        return loss.item()


def steps_per_epoch(train: Images, settings: Settings) -> int:
    return len(train.y) // settings.batch


def train_seed(digits: Digits, settings: Settings, seed: int, advance: Callable[[], None]) -> dict[str, Run]:
    """Trains every variant from the same weights on the same batches, step by step in turn: so that the times of two
    variants, and their ratio, see the same machine.

    advance: called after each step of all variants
    """
    steps = steps_per_epoch(digits.train, settings)
    runs = {name: _start(model, settings, seed, steps) for name, model in build_variants(settings.width, seed).items()}
    shuffle = torch.Generator().manual_seed(seed)
    tested = {round(settings.epochs * (i + 1) / settings.curve_points) for i in range(settings.curve_points)}
    for epoch in range(1, settings.epochs + 1):
        losses = {name: 0.0 for name in runs}
        for step, (x, y) in enumerate(_batches(digits.train, settings.batch, shuffle)):
            for name in _rotated(list(runs), step):  # no variant always runs after the same other one
                losses[name] += runs[name].step(x, y)
            advance()
        for name, run in runs.items():
            run.loss.append(losses[name] / steps)
            if epoch in tested:
                run.curve.append((epoch, accuracy(deployed(run.model, "aom", digits.train), digits.test)))
    for run in runs.values():
        del run.step_seconds[:_WARM_UP_STEPS]
    return runs


def _start(model: nn.Module, settings: Settings, seed: int, steps: int) -> Run:
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.peak_rate, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.peak_rate, total_steps=settings.epochs * steps)
    state = torch.Generator().manual_seed(seed).get_state()
    return Run(model.train(), optimizer, schedule, state)


def _batches(train: Images, batch: int, shuffle: torch.Generator) -> Iterator[Images]:
    """One epoch in a fresh order; the incomplete last batch is left out."""
    order = torch.randperm(len(train.y), generator=shuffle)
    for indices in order[: len(order) // batch * batch].split(batch):
        yield Images(train.x[indices].contiguous(memory_format=torch.channels_last), train.y[indices])


def _rotated(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]
