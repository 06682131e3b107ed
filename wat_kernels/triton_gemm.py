"""What the matrix kernels of all ops share: the multiply, the order of tiles, and a reduction cut into parts."""

from __future__ import annotations

import triton
import triton.language as tl

# bf16 tl.dot is silently wrong in Triton's interpreter, which has no such type: there, operands are cast to fp32.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


# Numbers of which no launch is compiled again: the last batch of an epoch, other rows of a table, a schedule of noise.
# `shadows` is not among them: with one shadow known, the weight gradients' sum over shadows takes no registers.
NOT_SPECIALIZED = ("images", "chunk", "rows", "cut")


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a @ b in fp32. a: (M, K), b: (K, N)."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


# Steps of a running fp32 sum after which it is added to the whole with what rounding loses kept (`add_compensated`). In
# fp32 alone: in half precision the result is rounded far more coarsely, and matrix units add up exactly enough.
CHAIN = tl.constexpr(32)


@triton.jit
def add_compensated(total, lost, part):
    """(total + part, what rounding has lost so far): Kahan's sum (CACM 8, 1965). lost: 0 at first"""
    part -= lost
    new = total + part
    return new, (new - total) - part


@triton.jit
def sum_of_products(a, b):
    """The sums of a * b over the last of two axes, of fp32.

    The products are rounded before any is added. The compiler would fuse a thread's product with its neighbour's and so
    give each of them another sum, of which chance kept one.
    """
    return tl.sum(tl.fma(a, b, tl.zeros_like(a)), 1)


@triton.jit
def tile_of(pid, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """(tile_m, tile_n): GROUP_M row tiles share a column tile before the next one comes, so that L2 serves both."""
    group = pid // (GROUP_M * tiles_n)
    first = group * GROUP_M
    height = min(tiles_m - first, GROUP_M)
    within = pid - group * GROUP_M * tiles_n
    return first + within % height, within // height


@triton.jit
def splits_of(tiles, blocks, programs):
    """Into how many parts `blocks` blocks of a sum are cut, so that about `programs` programs run on `tiles` tiles.

    `triton_launch.splits_of` is the same on the host.
    """
    return max(1, min(programs // tiles, blocks))


@triton.jit
def add_up_parts(total, parts, arrived, split, splits, tile, tiles, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Leaves this program's part of a sum; the program that arrives last at a tile adds them up in their order.

    So no program waits for another one, and the sum does not depend on who is last.

    total: (ROWS, COLUMNS) fp32; parts: scratch of splits * tiles * ROWS * COLUMNS fp32; arrived: (tiles,) int32, zero
    before and after the launch. Returns (total, whether this program was the last and has the whole sum).
    """
    size: tl.constexpr = ROWS * COLUMNS
    place = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(parts + (split * tiles + tile).to(tl.int64) * size + place, total)
    tl.debug_barrier()  # all threads of this program have stored before one of them says so
    last = tl.atomic_add(arrived + tile, 1, sem="acq_rel", scope="gpu") == splits - 1
    if last:
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for other in range(splits):  # .cg: what others wrote is in L2, not in this multiprocessor's L1
            total += tl.load(parts + (other * tiles + tile).to(tl.int64) * size + place, cache_modifier=".cg")
        tl.store(arrived + tile, 0)
    return total, last
