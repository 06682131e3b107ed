"""The words of the row draw by a Triton kernel. Importing this needs Triton."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from wat_kernels.triton_launch import INTERPRETED, settle_cache_keys

__all__ = ["INTERPRETED", "row_words", "row_words_kernel"]

BLOCK = 128


@triton.jit(do_not_specialize=["shadows"])
def row_words_kernel(key, words, shadows, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """words: (4, shadows) int64, those of BLOCK shadows"""
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    shadow = number.to(tl.uint32)
    zero = shadow * 0
    first, second, third, fourth = tl.philox(tl.load(key), zero, zero, shadow, zero)
    inside = number < shadows
    tl.store(words + number, first.to(tl.int64), mask=inside)
    tl.store(words + shadows + number, second.to(tl.int64), mask=inside)
    tl.store(words + 2 * shadows + number, third.to(tl.int64), mask=inside)
    tl.store(words + 3 * shadows + number, fourth.to(tl.int64), mask=inside)


def row_words(key: Tensor, shadows: int) -> Tensor:
    """key: () int64. Returns (4, shadows) int64 in [0, 2**32)."""
    words = key.new_empty(4, shadows)
    settle_cache_keys()
    other = key.device.type == "cuda" and key.device.index != torch.cuda.current_device()
    with torch.cuda.device(key.device) if other else contextlib.nullcontext():  # Triton takes the current one
        row_words_kernel[(triton.cdiv(shadows, BLOCK),)](key, words, shadows, BLOCK)
    return words
