"""Batches of a data set that is in memory as a whole, in an order that a checkpoint can continue."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .archive import Images

_PAD = 4  # pixels on each side; what a random crop moves by


class Normalization:
    """Pixels to numbers of mean 0 and standard deviation 1 in each channel of the training images."""

    def __init__(self, train: Images):
        std, mean = torch.std_mean(train.pixels.float(), (0, 2, 3), keepdim=True)
        self._mean, self._std = mean, std.clamp_min(1)  # a channel without contrast stays finite

    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> the same shape in float32, channels_last."""
        return ((pixels.float() - self._mean) / self._std).contiguous(memory_format=torch.channels_last)


class TrainingBatches:
    """Batches without end, shuffled again for every pass; the incomplete last batch of a pass is left out.

    augment: each image is cropped at random from itself with 4 black pixels around, and flipped every other time
    The order and the augmentation come from a generator of their own, so that a model's draws do not change them.
    Raises ValueError when there are fewer images than a batch holds.
    """

    def __init__(self, images: Images, normalization: Normalization, batch: int, augment: bool, seed: int):
        if not 1 <= batch <= len(images.labels):
            raise ValueError(f"batch={batch}; accepted is 1 to {len(images.labels)}, the number of training images")
        self._images, self._normalization, self._batch, self._augment = images, normalization, batch, augment
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    @property
    def per_epoch(self) -> int:
        return len(self._images.labels) // self._batch

    def next(self) -> tuple[Tensor, Tensor]:
        """x: (batch, 3, 32, 32) float32, channels_last; y: (batch,) int64"""
        if self._position % self.per_epoch == 0:
            self._order = torch.randperm(len(self._images.labels), generator=self._generator)
            self._position = 0
        start = self._position * self._batch
        chosen = self._order[start : start + self._batch].to(self._images.labels.device)
        self._position += 1
        pixels = self._images.pixels[chosen]
        if self._augment:
            pixels = cropped_and_flipped(pixels, self._generator)
        return self._normalization(pixels), self._images.labels[chosen]

    def state_dict(self) -> dict:
        return {"generator": self._generator.get_state(), "order": self._order, "position": self._position}

    def load_state_dict(self, state: dict) -> None:
        self._generator.set_state(state["generator"])
        self._order, self._position = state["order"], state["position"]


def cropped_and_flipped(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 3, H, W) -> the same shape: each image moved by up to 4 pixels, black coming in, and flipped or not."""
    count, _, height, width = pixels.shape
    shift = torch.randint(2 * _PAD + 1, (2, count, 1), generator=generator)
    flip = torch.randint(2, (count, 1), generator=generator, dtype=torch.bool)
    rows = shift[0] + torch.arange(height)  # (N, H), of the padded image
    columns = torch.arange(width).expand(count, width)
    columns = shift[1] + torch.where(flip, columns.flip(1), columns)  # (N, W)
    padded = torch.nn.functional.pad(pixels, (_PAD, _PAD, _PAD, _PAD))
    image = torch.arange(count, device=pixels.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[image, rows.to(pixels.device)[:, :, None], columns.to(pixels.device)[:, None]]
    return moved.permute(0, 3, 1, 2)


def in_order(images: Images, normalization: Normalization, batch: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
    """All images once, as they are: what tests and BatchNorm's re-estimation go through."""
    for pixels, labels in zip(images.pixels.split(batch), images.labels.split(batch), strict=True):
        yield normalization(pixels), labels
