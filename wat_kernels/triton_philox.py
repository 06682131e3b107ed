"""The draws of `wat_kernels.philox` inside Triton kernels: the same key gives the same rows, masks and numbers.

`triton.language.philox` is Philox4x32-10 already (Salmon et al., SC 2011); what is here is how this project counts:
counter = (block low, block high, shadow, purpose), purpose 0 for the draw of a row and 1 for noise. The key and the
thresholds are read from their addresses: the host never learns the draw, and a replayed CUDA graph draws afresh.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Of `wat_kernels.noise`, as a kernel can read them.
MULTIPLICATIVE = tl.constexpr(1)
DROP_CONNECT = tl.constexpr(2)

_ROW_BLOCK = tl.constexpr(64)
_UNIT = tl.constexpr(2.0**-24)
_TURN = tl.constexpr(6.283185307179586 * 2.0**-24)


@triton.jit
def row_words(key, shadow):
    """The four words of the row draw of one shadow. key: int64 scalar, shadow: int32 scalar. Four uint32 scalars."""
    shadow = tl.cast(shadow, tl.uint32)
    zero = shadow * 0
    return tl.philox(key, zero, zero, shadow, zero)


@triton.jit
def row_of(word, thresholds, rows):
    """How many of the `rows` thresholds at this address are <= word. word: uint32 scalar. int32 scalar."""
    word = word.to(tl.int64)
    row = 0
    for start in range(0, rows, _ROW_BLOCK):
        index = start + tl.arange(0, _ROW_BLOCK)
        threshold = tl.load(thresholds + index, mask=index < rows, other=4294967296)  # 2**32: above every word
        row += tl.sum((threshold <= word).to(tl.int32))
    return row


@triton.jit
def noise_words(key, shadow, block):
    """The four words of noise blocks. block: int32 or int64 tensor of any shape. Four uint32 tensors of that shape."""
    low = block.to(tl.uint32)
    high = (block >> 32).to(tl.uint32) if block.dtype == tl.int64 else low * 0
    return tl.philox(key, low, high, low * 0 + tl.cast(shadow, tl.uint32), low * 0 + 1)


@triton.jit
def noise_factor(
    key, shadow, line, column, scale, cut, NOISE: tl.constexpr, PACKED: tl.constexpr, COLUMNS: tl.constexpr
):
    """The factors of a tile of SW, elements line[:, None] + column + arange(COLUMNS), in fp32.

    line: (LINES,) int32 or int64 index of the first element of each line; column: int32 scalar
    scale: the standard deviation, or 1 / (1 - p); cut: round(65536 * p)
    PACKED: all of `line` and `column` are multiples of 8, so that one Philox block serves 8 elements of DropConnect
            (4 of Gaussian noise); without it each element computes a block of its own
    Returns (LINES, COLUMNS).
    """
    if PACKED:
        if NOISE == DROP_CONNECT:
            block = (line[:, None] + (column + 8 * tl.arange(0, COLUMNS // 8))[None, :]) >> 3  # (LINES, COLUMNS / 8)
            w0, w1, w2, w3 = noise_words(key, shadow, block)
            words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # (LINES, COLUMNS / 8, 2, 2), w0 w1 w2 w3 in memory order
            halves = tl.join(words & 0xFFFF, words >> 16)
            half = tl.reshape(halves, (line.shape[0], COLUMNS))
            return tl.where(half.to(tl.int32) >= cut, scale, 0.0)
        else:
            block = (line[:, None] + (column + 4 * tl.arange(0, COLUMNS // 4))[None, :]) >> 2  # (LINES, COLUMNS / 4)
            w0, w1, w2, w3 = noise_words(key, shadow, block)
            z0, z1 = box_muller(w0, w1)
            z2, z3 = box_muller(w2, w3)
            pairs = tl.join(tl.join(z0, z2), tl.join(z1, z3))  # z0 z1 z2 z3 in memory order
            return 1.0 + scale * tl.reshape(pairs, (line.shape[0], COLUMNS))
    else:
        element = line[:, None] + (column + tl.arange(0, COLUMNS))[None, :]
        return noise_at(key, shadow, element, scale, cut, NOISE)


@triton.jit
def noise_at(key, shadow, element, scale, cut, NOISE: tl.constexpr):
    """The factors of any elements of SW, each from a Philox block of its own. element: int32 or int64. fp32."""
    if NOISE == DROP_CONNECT:
        w0, w1, w2, w3 = noise_words(key, shadow, element >> 3)
        lane = (element & 7).to(tl.uint32)
        word = tl.where(lane < 4, tl.where(lane < 2, w0, w1), tl.where(lane < 6, w2, w3))
        half = (word >> ((lane & 1) * 16)) & 0xFFFF
        return tl.where(half.to(tl.int32) >= cut, scale, 0.0)
    else:
        w0, w1, w2, w3 = noise_words(key, shadow, element >> 2)
        lane = (element & 3).to(tl.int32)
        cosine, sine = box_muller(tl.where(lane < 2, w0, w2), tl.where(lane < 2, w1, w3))
        return 1.0 + scale * tl.where((lane & 1) == 0, cosine, sine)


@triton.jit
def box_muller(word_radius, word_angle):
    """Two standard normal numbers of two words: uint32 tensors of one shape in, two fp32 tensors of that shape out.

    The angle is an integer, 2**24 to the turn, so it is brought into [-1/8, 1/8] of a turn exactly and two short
    polynomials (those of Cephes' sinf and cosf) do; libdevice's sine reserves stack for angles that never come.
    """
    uniform = ((word_radius >> 8) + 1).to(tl.float32) * _UNIT
    radius = tl.sqrt(-2.0 * tl.log(uniform))
    angle = (word_angle >> 8).to(tl.int32)
    quarter = (angle + (1 << 21)) >> 22
    x = (angle - (quarter << 22)).to(tl.float32) * _TURN
    xx = x * x
    sine = x + x * xx * (-1.6666654611e-1 + xx * (8.3321608736e-3 + xx * -1.9515295891e-4))
    cosine = (
        1.0 - 0.5 * xx + xx * xx * (4.166664568298827e-2 + xx * (-1.388731625493765e-3 + xx * 2.443315711809948e-5))
    )
    odd = (quarter & 1) == 1
    first = tl.where(odd, sine, cosine)
    second = tl.where(odd, cosine, sine)
    first = tl.where(((quarter + 1) & 2) == 2, -first, first)
    second = tl.where((quarter & 2) == 2, -second, second)
    return radius * first, radius * second
