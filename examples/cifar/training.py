"""A training that can stop after any step and go on, bit for bit, from its checkpoint."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .archive import Images
from .batches import Normalization, TrainingBatches, in_order
from .recipes import Recipe


class Training:
    """Everything that a step changes. `history` has one record for each finished epoch: COLUMNS; seconds are those of its steps.

    Raises ValueError when there are fewer training images than a batch holds.
    """

    COLUMNS = ("epoch", "rate", "train_loss", "train_accuracy", "test_accuracy", "seconds")

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        train: Images,
        test: Images,
        normalization: Normalization,
        *,
        batch: int,
        epochs: int,
        seed: int,
    ):
        self.model, self.epochs = model.train(), epochs
        self._recipe, self._test, self._normalization = recipe, test, normalization
        self.batches = TrainingBatches(train, normalization, batch, recipe.augment, seed)
        self.optimizer = recipe.optimizer(model)
        self.schedule = recipe.schedule(self.optimizer, self.batches.per_epoch, epochs)
        self.steps_done = 0
        self.history: list[dict[str, float]] = []
        self._device = train.labels.device
        # of the epoch under way: summed loss, images got right, seconds
        self._loss = torch.zeros((), dtype=torch.float64, device=self._device)
        self._right = torch.zeros((), dtype=torch.int64, device=self._device)
        self._seconds = 0.0

    @property
    def steps(self) -> int:
        return self.epochs * self.batches.per_epoch

    @property
    def finished(self) -> bool:
        return self.steps_done == self.steps

    def step(self) -> bool:
        """One step; at the end of an epoch also its record. Returns whether an epoch has ended."""
        start = time.perf_counter()
        x, y = self.batches.next()
        rate = float(self.schedule.get_last_lr()[0])
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._recipe.autocasts(self._device)):
            logits = self.model(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=self._recipe.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.steps_done += 1
        self._loss += loss.detach()
        self._right += (logits.argmax(1) == y).sum()
        self._seconds += time.perf_counter() - start
        ended = self.steps_done % self.batches.per_epoch == 0
        if ended:
            self._end_epoch(rate, len(y))
        return ended

    def _end_epoch(self, rate: float, batch: int) -> None:
        steps = self.batches.per_epoch
        values = (
            len(self.history) + 1,
            rate,
            float(self._loss) / steps,
            100 * int(self._right) / (steps * batch),
            accuracy(self.model, self._test, self._normalization),
            round(self._seconds, 3),
        )
        self.history.append(dict(zip(self.COLUMNS, values, strict=True)))
        self._loss.zero_()
        self._right.zero_()
        self._seconds = 0.0
        self.model.train()

    def save(self, path: Path, settings: dict) -> None:
        """Writes a checkpoint; a file that was there stays whole until the new one is."""
        state = {
            "settings": settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "batches": self.batches.state_dict(),
            "random": random_state(self._device),
            "steps_done": self.steps_done,
            "history": self.history,
            "epoch": {"loss": self._loss, "right": self._right, "seconds": self._seconds},
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path, settings: dict) -> None:
        """Continues where the checkpoint at `path` was made.

        Raises ValueError when it was made with other settings, or cannot be read.
        """
        try:
            state = torch.load(path, map_location=self._device, weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise ValueError(f"{path} is damaged or no checkpoint: {str(error).splitlines()[0]}") from None
        for name, value in settings.items():
            if state["settings"].get(name) != value:
                raise ValueError(f"{name}={value}, but {path} was made with {state['settings'].get(name)}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.batches.load_state_dict({name: _on_cpu(value) for name, value in state["batches"].items()})
        set_random_state({name: _on_cpu(value) for name, value in state["random"].items()}, self._device)
        self.steps_done, self.history = state["steps_done"], state["history"]
        self._loss, self._right = state["epoch"]["loss"], state["epoch"]["right"]
        self._seconds = state["epoch"]["seconds"]


def random_state(device: torch.device) -> dict[str, Tensor]:
    """States of torch's generators: the CPU's, and the GPU's where the model is on one."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def accuracy(model: nn.Module, images: Images, normalization: Normalization) -> float:
    """Per cent of `images` that the model in eval() gets right, in the precision of its weights."""
    model.eval()
    with torch.no_grad():
        right = sum((model(x).argmax(1) == y).sum() for x, y in in_order(images, normalization))
    return 100 * int(right) / len(images.labels)


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
