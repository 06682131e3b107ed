"""Which key a forward draws: one of this rank's own, or one that all ranks share."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from wat_kernels import draw_key

_REMEMBERED = 1024  # forwards of a layer that may lie between one and its recomputation
# Where a rank or a number of a forward enters a key: the upper half, so that the small keys that users count do not meet
# each other. One bit is enough to make Philox's streams unlike.
_SHIFT = 32


def fresh_key(device: torch.device) -> Tensor:
    """A key from torch's generator of `device`, another one on each rank also where all ranks are seeded alike.

    Returns a () int64 tensor. The rank only turns bits of the key over: without torch.distributed, and on rank 0, it is
    the key that `draw_key` gives.
    """
    key = draw_key(device)
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return key if rank == 0 else key ^ (rank << _SHIFT)


class SharedKeys:
    """One layer's keys where all ranks draw alike: its n-th forward uses key n of a stream that all ranks know.

    A forward that activation checkpointing runs again must get the key that it had. What tells it from a new one is
    torch's generator: checkpointing puts its state back, so that the word it gives was seen before. Ranks need not draw
    equal words for that. All is tensor arithmetic: nothing waits for the device, and a compiled graph stays valid.
    """

    def __init__(self, key: int, device: torch.device):
        self._key = torch.tensor(key, device=device)  # () int64
        self._count = torch.zeros_like(self._key)  # forwards so far
        self._words = self._key.new_zeros(_REMEMBERED)  # what the generator gave for the last forwards
        self._numbers = torch.zeros_like(self._words)  # which forwards those were

    def draw(self) -> Tensor:
        """The key of the forward that calls, () int64 on the stream's device."""
        word = draw_key(self._key.device)
        number = torch.where(self._words == word, self._numbers, self._count).amin()
        slot = (number % _REMEMBERED).reshape(1)
        self._words.index_copy_(0, slot, word.reshape(1))
        self._numbers.index_copy_(0, slot, number.reshape(1))
        self._count.copy_(torch.maximum(self._count, number + 1))
        return self._key ^ (number << _SHIFT)
