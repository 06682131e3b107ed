"""Philox4x32-10 and the draws made from it, in plain PyTorch integer arithmetic.

A counter-based generator is a pure function (key, counter) -> 128 random bits, so any tile of any kernel, forward or
backward, makes the numbers it needs from its own position and nothing is stored. This file defines the bits; the
Triton and C++ kernels produce the same ones.

    key     = (low 32 bits, high 32 bits) of the int64 key
    counter = (block low, block high, shadow, purpose)

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

PURPOSE_ROW = 0
PURPOSE_NOISE = 1

_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Words: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Words:
    """Ten rounds of Philox4x32.

    counter: four int64 tensors that broadcast together, each value in [0, 2**32)
    key:     two int64 tensors that broadcast with the counter, each value in [0, 2**32)
    Returns four int64 tensors of the broadcast shape, each value in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply_32x32(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply_32x32(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    c0, c1, c2, c3 = torch.broadcast_tensors(c0, c1, c2, c3)
    return c0, c1, c2, c3


def _multiply_32x32(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """(high, low) 32-bit words of a * b. Split at 16 bits so that no int64 product ever overflows."""
    low_part = b * (a & 0xFFFF)
    high_part = b * (a >> 16)
    middle = high_part + (low_part >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low_part & 0xFFFF)


def split_key(key: Tensor) -> tuple[Tensor, Tensor]:
    """(low, high) 32-bit words of an int64 key, each as int64 in [0, 2**32)."""
    return key & _MASK32, (key >> 32) & _MASK32


def row_words(key: Tensor, shadows: int) -> Words:
    """The four words of the row draw of each shadow: counter (0, 0, shadow, 0).

    key: () int64. Returns four (shadows,) int64 tensors in [0, 2**32).
    """
    shadow = torch.arange(shadows, device=key.device)
    zero = torch.zeros_like(shadow)
    return philox4x32((zero, zero, shadow, zero + PURPOSE_ROW), split_key(key))


def _noise_words(key: Tensor, shadows: int, blocks: int, *, first: int = 0, shadow: int = 0) -> Words:
    """Words of `blocks` noise blocks from `first` on, of `shadows` shadows from `shadow` on.

    Returns four (shadows, blocks) int64 tensors.
    """
    block = torch.arange(first, first + blocks, device=key.device)
    number = torch.arange(shadow, shadow + shadows, device=key.device).unsqueeze(1)
    purpose = torch.full_like(number, PURPOSE_NOISE)
    return philox4x32((block & _MASK32, block >> 32, number, purpose), split_key(key))


def keep_mask(
    key: Tensor, shadows: int, elements: int, probability: float | Tensor, *, first: int = 0, shadow: int = 0
) -> Tensor:
    """DropConnect's mask: element e of shadow s is kept unless its 16 random bits are below round(65536 * p).

    One block covers 8 consecutive elements: halves of word 0 (low, then high), of word 1, and so on.
    key: () int64. first: the first element, a multiple of 8; shadow: the first shadow.
    Returns (shadows, elements) bool.
    """
    drawn = _noise_words(key, shadows, -(-elements // 8), first=first // 8, shadow=shadow)
    words = torch.stack(drawn, dim=-1)  # (S, blocks, 4)
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=-1).flatten(1)[:, :elements]  # (S, blocks * 8)
    least = 65536 * probability
    return halves >= (least.round() if isinstance(least, Tensor) else round(least))


def standard_normal(key: Tensor, shadows: int, elements: int, *, first: int = 0, shadow: int = 0) -> Tensor:
    """Standard normal numbers by Box-Muller in fp32.

    One block covers 4 consecutive elements: words (0, 1) give elements 0 and 1, words (2, 3) elements 2 and 3. Of each
    word the upper 24 bits are used, which fp32 holds exactly: u = (w0 >> 8) + 1 in units of 2**-24 is in (0, 1] and
    never 0, the angle is (w1 >> 8) * 2**-24 of a turn; first cos, then sin.
    key: () int64. first: the first element, a multiple of 4; shadow: the first shadow.
    Returns (shadows, elements) float32.
    """
    drawn = _noise_words(key, shadows, -(-elements // 4), first=first // 4, shadow=shadow)
    words = torch.stack(drawn, dim=-1)  # (S, blocks, 4)
    unit = 2.0**-24
    uniform = ((words[..., 0::2] >> 8) + 1).float() * unit  # (S, blocks, 2)
    angle = (words[..., 1::2] >> 8).float() * (2 * math.pi * unit)
    radius = torch.sqrt(-2 * torch.log(uniform))
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)  # (S, blocks, 2, 2)
    return pairs.flatten(1)[:, :elements]
