"""What the three convolution kernels share: the drawn row in registers, and tiles of SW made on the way to a multiply.

A row of the tap table is read once, before the main loop, and packed into 64-bit scalars. The loop takes the tap of
its trip out of them with a shift: a table read inside the loop would be a load that feeds the address of another load,
which costs the software pipeline half of its depth.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wat_kernels.triton_philox import noise_factor, row_of, row_words

MAX_TAPS = 64  # of a kernel: the packed taps then need at most seven scalars
_MAX_UNROLLED = tl.constexpr(4)  # input taps of a mixed output tap, up to which they are packed too


@triton.jit
def row_line(key, shadow, thresholds, rows, taps, LENGTH: tl.constexpr):
    """Address of the drawn line of `taps` (rows, LENGTH)."""
    word, _, _, _ = row_words(key, shadow)
    return taps + row_of(word, thresholds, rows) * LENGTH


@triton.jit
def is_unit(line, TAPS: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr):
    """Whether this line moves taps without mixing or scaling them: one input tap each, with coefficient 1."""
    slot = tl.arange(0, SLOTS)
    active = slot < tl.load(line)
    place = line + 1 + TAPS + TAPS * WIDTH + slot * WIDTH
    wrong = (tl.load(place, mask=active, other=0).to(tl.float32, bitcast=True) != 1.0) & active
    for e in range(1, WIDTH):
        wrong |= tl.load(place + e, mask=active, other=0).to(tl.float32, bitcast=True) != 0.0
    return tl.sum(wrong.to(tl.int32)) == 0


@triton.jit
def pack(values, keep, BITS: tl.constexpr, WORDS: tl.constexpr):
    """The kept ones of `values` (SLOTS,), in order and without gaps, in WORDS int64 scalars of 64 // BITS fields."""
    FIELDS: tl.constexpr = 64 // BITS
    place = tl.cumsum(keep.to(tl.int32), 0) - 1
    words = ()
    for word in tl.static_range(WORDS):
        field = place - word * FIELDS
        inside = keep & (field >= 0) & (field < FIELDS)
        shifted = values.to(tl.int64) << (tl.where(inside, field, 0) * BITS).to(tl.int64)
        words = words + (tl.sum(tl.where(inside, shifted, 0)),)  # noqa: RUF005  (the form that Triton compiles)
    return words


@triton.jit
def unpack(words, index, BITS: tl.constexpr, WORDS: tl.constexpr):
    """Value `index` of what `pack` packed, an int32 scalar."""
    FIELDS: tl.constexpr = 64 // BITS
    word = words[0]
    for later in tl.static_range(1, WORDS):
        word = tl.where(index >= later * FIELDS, words[later], word)
    return ((word >> ((index % FIELDS) * BITS).to(tl.int64)) & ((1 << BITS) - 1)).to(tl.int32)


@triton.jit
def pack_inputs(line, keep, TAPS: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr):  # fmt: skip
    """The input taps of the kept slots: for each of the first four a tuple as `pack` makes it, one after another."""
    slot = tl.arange(0, SLOTS)
    words = ()
    for e in tl.static_range(WIDTH if WIDTH <= _MAX_UNROLLED else 1):
        inputs = tl.load(line + 1 + TAPS + slot * WIDTH + e, mask=slot < TAPS, other=0)
        words = words + pack(inputs, keep, BITS, WORDS)
    return words


@triton.jit
def plain_tile(weight, lines, columns, tap, inside, tap_stride):
    """A tile of PW at one tap. lines: (BO, 1) and columns: (1, BI) offsets of channels. Returns (BO, BI)."""
    return tl.load(weight + tap * tap_stride + lines + columns, mask=inside, other=0.0)


@triton.jit
def shadow_tile(
    weight, lines, columns, inside, tap_stride, line, slot, inputs, trip, key, shadow, element, column, scale, cut,
    TAPS: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr,
    NOISE: tl.constexpr, PACKED: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """A tile of SW: up to WIDTH tiles of PW mixed in fp32 registers, times the noise, rounded once.

    slot: which entry of the line, trip: the same counted among the kept ones (as `inputs` is packed)
    element: (BO,) index in SW of the first element of each line; column: the first input channel
    Returns (BO, BI) in the weight's dtype.
    """
    coefficients = line + 1 + TAPS + TAPS * WIDTH + slot * WIDTH
    tile = tl.zeros(inside.shape, tl.float32)
    if WIDTH <= _MAX_UNROLLED:
        for e in tl.static_range(WIDTH):
            tap = unpack(inputs[e * WORDS : (e + 1) * WORDS], trip, BITS, WORDS)
            coefficient = tl.load(coefficients + e).to(tl.float32, bitcast=True)
            tile += coefficient * plain_tile(weight, lines, columns, tap, inside, tap_stride).to(tl.float32)
    else:
        for e in range(WIDTH):
            tap = tl.load(line + 1 + TAPS + slot * WIDTH + e)
            coefficient = tl.load(coefficients + e).to(tl.float32, bitcast=True)
            tile += coefficient * plain_tile(weight, lines, columns, tap, inside, tap_stride).to(tl.float32)
    if NOISE != 0:
        tile *= noise_factor(key, shadow, element, column, scale, cut, NOISE, PACKED, BI)
    return tile.to(weight.dtype.element_ty)
