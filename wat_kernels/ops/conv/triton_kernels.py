"""Forward and data gradient: implicit GEMM over pixels, the weight read through the drawn row, one launch each.

Both are one loop over (active tap, block of channels). A row of the GEMM is a pixel, its columns are the channels that
come out; the operand on the left is an image tile moved by the tap, the one on the right a tile of SW.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wat_kernels.ops.conv.triton_row import is_unit, pack, pack_inputs, plain_tile, row_line, shadow_tile, unpack
from wat_kernels.triton_gemm import NOT_SPECIALIZED, dot, tile_of


@triton.jit
def _fwd_sum(
    x, weight, base, top, left, pixels, inside_n, out_channel, element, line, key, shadow,
    slots, outputs, inputs, trips, height, width, in_channels, x_h, x_w, x_c, w_o, w_i, w_t, dil_h, dil_w, scale, cut,
    MIX: tl.constexpr, TAPS: tl.constexpr, KERNEL_W: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr,
    WORDS: tl.constexpr, NOISE: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The main loop of the forward pass. Returns (BM, BN) fp32."""
    blocks = tl.cdiv(in_channels, BK)
    accumulator = tl.zeros((BM, BN), tl.float32)
    for step in range(trips * blocks):
        trip = step // blocks
        first = (step - trip * blocks) * BK
        tap = unpack(outputs, trip, BITS, WORDS)
        down = (tap // KERNEL_W) * dil_h
        right = (tap % KERNEL_W) * dil_w
        channel = first + tl.arange(0, BK)
        inside_k = channel < in_channels
        row = top + down
        column = left + right
        seen = pixels & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        image = tl.load(
            x + (base + down * x_h + right * x_w)[:, None] + (channel * x_c)[None, :],
            mask=seen[:, None] & inside_k[None, :],
            other=0.0,
        )  # (BM, BK)
        inside = inside_n[:, None] & inside_k[None, :]
        lines = (out_channel * w_o)[:, None]
        columns = (channel * w_i)[None, :]
        if MIX:
            tile = shadow_tile(
                weight, lines, columns, inside, w_t, line, unpack(slots, trip, BITS, WORDS), inputs, trip, key, shadow,
                element + tap * in_channels, first, scale, cut, TAPS, WIDTH, BITS, WORDS, NOISE, PACKED, BK,
            )  # fmt: skip
        else:
            tile = plain_tile(weight, lines, columns, unpack(inputs, trip, BITS, WORDS), inside, w_t)
        accumulator = dot(image, tl.trans(tile), accumulator, PRECISION)
    return accumulator


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def conv2d_fwd_kernel(
    x, weight, bias, gain, y, key, thresholds, taps, scale, cut, rows, shadows, images, groups, in_channels, out_channels,
    height, width, out_height, out_width, x_n, x_c, x_h, x_w, w_o, w_i, w_t, y_n, y_c, y_h, y_w,
    stride_h, stride_w, pad_top, pad_left, dil_h, dil_w,
    TAPS: tl.constexpr, KERNEL_W: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, BITS: tl.constexpr,
    WORDS: tl.constexpr, BIAS: tl.constexpr, GAIN: tl.constexpr, NOISE: tl.constexpr, PACKED: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """y[chunk s] = gain * conv(x[chunk s], SW[s]) + bias for one (BM pixels, BN channels) tile of one chunk and group.

    images: in a chunk; in_channels, out_channels: of a group; GAIN: 0 none, 1 one number, 2 one per output channel
    """
    index = tl.int64 if WIDE else tl.int32
    chunk_pixels = tl.cast(images, index) * out_height * out_width
    chunk_tiles = tl.cdiv(chunk_pixels, BM)
    tiles_m = shadows * chunk_tiles
    tiles_n = tl.cdiv(out_channels, BN)
    group = tl.program_id(0) // (tiles_m * tiles_n)
    tile_m, tile_n = tile_of(tl.program_id(0) % (tiles_m * tiles_n), tiles_m, tiles_n, GROUP_M)
    shadow = tile_m // chunk_tiles

    drawn = tl.load(key)
    line = row_line(drawn, shadow, thresholds, rows, taps, 1 + TAPS + 2 * TAPS * WIDTH)
    slot = tl.arange(0, SLOTS)
    trips = tl.load(line)
    active = slot < trips
    outputs = pack(tl.load(line + 1 + slot, mask=slot < TAPS, other=0), active, BITS, WORDS)
    inputs = pack_inputs(line, active, TAPS, WIDTH, SLOTS, BITS, WORDS)
    slots = pack(slot, active, BITS, WORDS)

    pixel = (tile_m % chunk_tiles) * BM + tl.arange(0, BM)
    pixels = pixel < chunk_pixels
    in_image = pixel % (out_height * out_width)
    image = (shadow * images + pixel // (out_height * out_width)).to(index)
    out_row = in_image // out_width
    out_column = in_image % out_width
    top = out_row * stride_h - pad_top
    left = out_column * stride_w - pad_left
    base = image * x_n + top * x_h + left * x_w
    channel = tile_n * BN + tl.arange(0, BN)
    inside_n = channel < out_channels
    out_channel = group * out_channels + channel

    x += group.to(index) * in_channels * x_c
    element = out_channel.to(tl.int64 if WIDE else tl.int32) * TAPS * in_channels
    accumulator = tl.zeros((BM, BN), tl.float32)
    unit = False if NOISE != 0 else is_unit(line, TAPS, WIDTH, SLOTS)
    if unit:
        accumulator = _fwd_sum(
            x, weight, base, top, left, pixels, inside_n, out_channel.to(index), element, line, drawn, shadow,
            slots, outputs, inputs, trips, height, width, in_channels, x_h, x_w, x_c, w_o, w_i, w_t, dil_h, dil_w,
            scale, cut, False, TAPS, KERNEL_W, WIDTH, BITS, WORDS, NOISE, PACKED, PRECISION, BM, BN, BK,
        )  # fmt: skip
    else:
        accumulator = _fwd_sum(
            x, weight, base, top, left, pixels, inside_n, out_channel.to(index), element, line, drawn, shadow,
            slots, outputs, inputs, trips, height, width, in_channels, x_h, x_w, x_c, w_o, w_i, w_t, dil_h, dil_w,
            scale, cut, True, TAPS, KERNEL_W, WIDTH, BITS, WORDS, NOISE, PACKED, PRECISION, BM, BN, BK,
        )  # fmt: skip
    if GAIN == 1:
        accumulator *= tl.load(gain).to(tl.float32)
    if GAIN == 2:
        accumulator *= tl.load(gain + out_channel, mask=inside_n, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        accumulator += tl.load(bias + out_channel, mask=inside_n, other=0.0).to(tl.float32)[None, :]
    out = image * y_n + out_row * y_h + out_column * y_w
    tl.store(
        y + out[:, None] + (out_channel.to(index) * y_c)[None, :],
        accumulator.to(y.dtype.element_ty),
        mask=pixels[:, None] & inside_n[None, :],
    )


@triton.jit
def _bwd_data_sum(
    dy, weight, gain, base, row, column, pixels, inside_n, channel, tile_first, first_out, line, key, shadow,
    slots, outputs, inputs, trips, above, before, stride_h, stride_w, out_height, out_width, in_channels, out_channels,
    y_h, y_w, y_c, w_o, w_i, w_t, dil_h, dil_w, scale, cut,
    MIX: tl.constexpr, TAPS: tl.constexpr, KERNEL_W: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr,
    WORDS: tl.constexpr, GAIN: tl.constexpr, NOISE: tl.constexpr, PACKED: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The main loop of the data gradient. Returns (BM, BN) fp32."""
    index = tl.int64 if WIDE else tl.int32
    blocks = tl.cdiv(out_channels, BK)
    accumulator = tl.zeros((BM, BN), tl.float32)
    for step in range(trips * blocks):
        trip = step // blocks
        out_channel = (step - trip * blocks) * BK + tl.arange(0, BK)
        inside_k = out_channel < out_channels
        out_channel += first_out
        tap = unpack(outputs, trip, BITS, WORDS)
        down = (above - (tap // KERNEL_W) * dil_h) // stride_h  # exact: other taps of this class were not kept
        right = (before - (tap % KERNEL_W) * dil_w) // stride_w
        seen = pixels & (row + down >= 0) & (row + down < out_height)
        seen &= (column + right >= 0) & (column + right < out_width)
        grad = tl.load(
            dy + (base + down * y_h + right * y_w)[:, None] + (out_channel.to(index) * y_c)[None, :],
            mask=seen[:, None] & inside_k[None, :],
            other=0.0,
        )  # (BM, BK)
        if GAIN == 2:  # the gain stands on the channels that are summed over
            factor = tl.load(gain + out_channel, mask=inside_k, other=0.0).to(tl.float32)
            grad = (grad.to(tl.float32) * factor[None, :]).to(grad.dtype)
        inside = inside_k[:, None] & inside_n[None, :]
        lines = (out_channel.to(index) * w_o)[:, None]
        columns = (channel * w_i)[None, :]
        if MIX:
            element = (out_channel.to(index) * TAPS + tap) * in_channels
            tile = shadow_tile(
                weight, lines, columns, inside, w_t, line, unpack(slots, trip, BITS, WORDS), inputs, trip, key, shadow,
                element, tile_first, scale, cut, TAPS, WIDTH, BITS, WORDS, NOISE, PACKED, BN,
            )  # fmt: skip
        else:
            tile = plain_tile(weight, lines, columns, unpack(inputs, trip, BITS, WORDS), inside, w_t)
        accumulator = dot(grad, tile, accumulator, PRECISION)
    return accumulator


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def conv2d_bwd_data_kernel(
    dy, weight, gain, dx, key, thresholds, taps, scale, cut, rows, shadows, images, groups, in_channels, out_channels,
    height, width, out_height, out_width, y_n, y_c, y_h, y_w, w_o, w_i, w_t, x_n, x_c, x_h, x_w,
    stride_h, stride_w, pad_top, pad_left, dil_h, dil_w,
    TAPS: tl.constexpr, KERNEL_W: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, BITS: tl.constexpr,
    WORDS: tl.constexpr, GAIN: tl.constexpr, NOISE: tl.constexpr, PACKED: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """dx[chunk s] = gain * conv_data_gradient(dy[chunk s], SW[s]) for one tile of pixels of one class.

    Pixels of x fall into stride_h * stride_w classes by (row, column) modulo the stride: all pixels of a class meet the
    same taps, so that a strided convolution multiplies by no zeros either.
    """
    index = tl.int64 if WIDE else tl.int32
    class_height = tl.cdiv(height, stride_h)
    class_width = tl.cdiv(width, stride_w)
    chunk_pixels = tl.cast(images, index) * class_height * class_width
    chunk_tiles = tl.cdiv(chunk_pixels, BM)
    tiles_m = shadows * chunk_tiles
    tiles_n = tl.cdiv(in_channels, BN)
    part = tl.program_id(0) // (tiles_m * tiles_n)
    group = part // (stride_h * stride_w)
    class_row = part % (stride_h * stride_w) // stride_w
    class_column = part % stride_w
    tile_m, tile_n = tile_of(tl.program_id(0) % (tiles_m * tiles_n), tiles_m, tiles_n, GROUP_M)
    shadow = tile_m // chunk_tiles
    above = class_row + pad_top
    before = class_column + pad_left

    drawn = tl.load(key)
    line = row_line(drawn, shadow, thresholds, rows, taps, 1 + TAPS + 2 * TAPS * WIDTH)
    slot = tl.arange(0, SLOTS)
    output = tl.load(line + 1 + slot, mask=slot < TAPS, other=0)
    met = slot < tl.load(line)
    met &= ((above - (output // KERNEL_W) * dil_h) % stride_h) == 0
    met &= ((before - (output % KERNEL_W) * dil_w) % stride_w) == 0
    trips = tl.sum(met.to(tl.int32))
    outputs = pack(output, met, BITS, WORDS)
    inputs = pack_inputs(line, met, TAPS, WIDTH, SLOTS, BITS, WORDS)
    slots = pack(slot, met, BITS, WORDS)

    pixel = (tile_m % chunk_tiles) * BM + tl.arange(0, BM)
    in_image = pixel % (class_height * class_width)
    image = (shadow * images + pixel // (class_height * class_width)).to(index)
    row = in_image // class_width
    column = in_image % class_width
    x_row = row * stride_h + class_row
    x_column = column * stride_w + class_column
    pixels = (pixel < chunk_pixels) & (x_row < height) & (x_column < width)
    base = image * y_n + row * y_h + column * y_w
    tile_first = tile_n * BN
    channel = tile_first + tl.arange(0, BN)
    inside_n = channel < in_channels

    first_out = group * out_channels
    accumulator = tl.zeros((BM, BN), tl.float32)
    unit = False if NOISE != 0 else is_unit(line, TAPS, WIDTH, SLOTS)
    if unit:
        accumulator = _bwd_data_sum(
            dy, weight, gain, base, row, column, pixels, inside_n, channel, tile_first, first_out, line, drawn, shadow,
            slots, outputs, inputs, trips, above, before, stride_h, stride_w, out_height, out_width, in_channels,
            out_channels, y_h, y_w, y_c, w_o, w_i, w_t, dil_h, dil_w, scale, cut, False, TAPS, KERNEL_W, WIDTH, BITS,
            WORDS, GAIN, NOISE, PACKED, WIDE, PRECISION, BM, BN, BK,
        )  # fmt: skip
    else:
        accumulator = _bwd_data_sum(
            dy, weight, gain, base, row, column, pixels, inside_n, channel, tile_first, first_out, line, drawn, shadow,
            slots, outputs, inputs, trips, above, before, stride_h, stride_w, out_height, out_width, in_channels,
            out_channels, y_h, y_w, y_c, w_o, w_i, w_t, dil_h, dil_w, scale, cut, True, TAPS, KERNEL_W, WIDTH, BITS,
            WORDS, GAIN, NOISE, PACKED, WIDE, PRECISION, BM, BN, BK,
        )  # fmt: skip
    if GAIN == 1:
        accumulator *= tl.load(gain).to(tl.float32)
    out = image * x_n + x_row * x_h + x_column * x_w
    tl.store(
        dx + out[:, None] + ((group * in_channels + channel).to(index) * x_c)[None, :],
        accumulator.to(dx.dtype.element_ty),
        mask=pixels[:, None] & inside_n[None, :],
    )
