"""A kernel that reads a buffer again and again: what the multiprocessors get from L2."""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = 4096  # elements of fp32 that a program reads at once


@triton.jit
def read_all(data, sums, blocks, passes, BLOCK: tl.constexpr):
    """Program p begins at its own block, so that programs do not read the same line at the same time."""
    program = tl.program_id(0)
    inside = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for step in range(blocks * passes):
        block = (step + 37 * program) % blocks
        total += tl.load(data + block * BLOCK + inside, eviction_policy="evict_last")
    tl.store(sums + program, tl.sum(total, 0))
