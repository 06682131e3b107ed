"""Weight gradient: a GEMM over pixels for each input tap, through the transpose of the drawn map, one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from wat_kernels.ops.conv.triton_row import row_line
from wat_kernels.triton_gemm import (
    CHAIN,
    NOT_SPECIALIZED,
    add_compensated,
    add_up_parts,
    dot,
    splits_of,
    sum_of_products,
)
from wat_kernels.triton_philox import noise_factor


@triton.jit
def _sum_of_blocks(
    dy, x, first, last, first_image, chunk_pixels, down, right, height, width, out_height, out_width, stride_h, stride_w,
    y_n, y_h, y_w, x_n, x_h, x_w, y_channel, x_channel, inside_o, inside_i,
    PRECISION: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """The main loop: dSW of one output tap over the blocks of BP pixels from `first` to `last`. Returns (BO, BI) fp32."""
    accumulator = tl.zeros((BO, BI), tl.float32)
    for block in range(first, last):
        pixel = block * BP + tl.arange(0, BP)
        pixels = pixel < chunk_pixels
        in_image = pixel % (out_height * out_width)
        image = (first_image + pixel // (out_height * out_width)).to(y_channel.dtype)
        out_row = in_image // out_width
        out_column = in_image % out_width
        grad = tl.load(
            dy + (image * y_n + out_row * y_h + out_column * y_w)[:, None] + y_channel,
            mask=pixels[:, None] & inside_o[None, :],
            other=0.0,
        )  # (BP, BO)
        row = out_row * stride_h + down
        column = out_column * stride_w + right
        seen = pixels & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        pixels_of_x = tl.load(
            x + (image * x_n + row * x_h + column * x_w)[:, None] + x_channel,
            mask=seen[:, None] & inside_i[None, :],
            other=0.0,
        )  # (BP, BI)
        accumulator = dot(tl.trans(grad), pixels_of_x, accumulator, PRECISION)
    return accumulator


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def conv2d_bwd_weight_kernel(
    dy, x, weight, gain, dweight, dgain, parts, arrived, key, thresholds, taps_t, scale, cut, rows, shadows, images, groups,
    in_channels, out_channels, height, width, out_height, out_width, y_n, y_c, y_h, y_w, x_n, x_c, x_h, x_w,
    w_o, w_i, w_t, d_o, d_i, d_t, stride_h, stride_w, pad_top, pad_left, dil_h, dil_w, programs,
    TAPS: tl.constexpr, KERNEL_W: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, NEEDS_WEIGHT: tl.constexpr,
    NEEDS_GAIN: tl.constexpr, GAIN: tl.constexpr, NOISE: tl.constexpr, PACKED: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """dPW of one (BO, BI) tile of one input tap: gain * sum over shadows and their outputs of M^T (dSW * noise).

    Where the tiles of the weight do not fill the device, the pixels are cut into parts, see `add_up_parts`.

    dgain:   (tiles of input channels * TAPS, all output channels) fp32, <PW, dPW> before the gain, to be summed
    parts:   scratch of `add_up_parts`; arrived: (programs,) int32, zero before and after
    """
    index = tl.int64 if WIDE else tl.int32
    tiles_o = tl.cdiv(out_channels, BO)
    tiles_i = tl.cdiv(in_channels, BI)
    tiles = tiles_o * tiles_i * TAPS * groups
    chunk_pixels = tl.cast(images, index) * out_height * out_width
    blocks = tl.cdiv(chunk_pixels, BP)
    splits = splits_of(tiles, blocks, programs)
    split = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    tile_i = tile % tiles_i
    tap_in = tile // tiles_i % TAPS
    tile_o = tile // (tiles_i * TAPS) % tiles_o
    group = tile // (tiles_i * TAPS * tiles_o)

    out_channel = tile_o * BO + tl.arange(0, BO)
    inside_o = out_channel < out_channels
    out_channel = group * out_channels + out_channel
    channel = tile_i * BI + tl.arange(0, BI)
    inside_i = channel < in_channels
    y_channel = (out_channel.to(index) * y_c)[None, :]
    x_channel = ((group * in_channels + channel).to(index) * x_c)[None, :]
    each = tl.cdiv(blocks, splits)
    first = split * each
    last = min(first + each, blocks)

    drawn = tl.load(key)
    total = tl.zeros((BO, BI), tl.float32)
    slot = tl.arange(0, SLOTS)
    for shadow in range(shadows):
        line = row_line(drawn, shadow, thresholds, rows, taps_t, 1 + TAPS + 2 * TAPS * WIDTH)
        reached = tl.load(line + 1 + slot, mask=slot < TAPS, other=-1) == tap_in
        reached &= slot < tl.load(line)
        entry = tl.sum(tl.where(reached, slot, 0)) * WIDTH
        outputs = tl.sum(reached.to(tl.int32)) * WIDTH
        for e in range(outputs):
            tap = tl.load(line + 1 + TAPS + entry + e)
            coefficient = tl.load(line + 1 + TAPS + TAPS * WIDTH + entry + e).to(tl.float32, bitcast=True)
            down = (tap // KERNEL_W) * dil_h - pad_top
            right = (tap % KERNEL_W) * dil_w - pad_left
            until = tl.where(coefficient != 0.0, last, first)  # an unused place of the line
            accumulator = tl.zeros((BO, BI), tl.float32)
            if x.dtype.element_ty == tl.float32:
                lost = tl.zeros((BO, BI), tl.float32)
                for start in range(first, until, CHAIN):
                    part = _sum_of_blocks(
                        dy, x, start, min(start + CHAIN, until), shadow * images, chunk_pixels, down, right, height, width,
                        out_height, out_width, stride_h, stride_w, y_n, y_h, y_w, x_n, x_h, x_w, y_channel, x_channel,
                        inside_o, inside_i, PRECISION, BO, BI, BP,
                    )  # fmt: skip
                    accumulator, lost = add_compensated(accumulator, lost, part)
            else:
                accumulator = _sum_of_blocks(
                    dy, x, first, until, shadow * images, chunk_pixels, down, right, height, width, out_height,
                    out_width, stride_h, stride_w, y_n, y_h, y_w, x_n, x_h, x_w, y_channel, x_channel, inside_o,
                    inside_i, PRECISION, BO, BI, BP,
                )  # fmt: skip
            if NOISE != 0:
                element = (out_channel.to(index) * TAPS + tap) * in_channels
                accumulator *= noise_factor(drawn, shadow, element, tile_i * BI, scale, cut, NOISE, PACKED, BI)
            total += coefficient * accumulator

    finished = True
    if parts is not None:  # noqa: SIM102  (this question is answered by the compiler)
        if splits > 1:
            total, finished = add_up_parts(total, parts, arrived, split, splits, tile, tiles, BO, BI)
    if finished:
        inside = inside_o[:, None] & inside_i[None, :]
        if NEEDS_GAIN:
            plain = tl.load(
                weight + (out_channel.to(index) * w_o)[:, None] + (channel * w_i)[None, :] + tap_in * w_t,
                mask=inside,
                other=0.0,
            )
            product = sum_of_products(total, plain.to(tl.float32))  # (BO,)
            tl.store(dgain + (tile_i * TAPS + tap_in) * groups * out_channels + out_channel, product, mask=inside_o)
        if NEEDS_WEIGHT:
            if GAIN == 1:
                total *= tl.load(gain).to(tl.float32)
            if GAIN == 2:
                total *= tl.load(gain + out_channel, mask=inside_o, other=0.0).to(tl.float32)[:, None]
            tl.store(
                dweight + (out_channel.to(index) * d_o)[:, None] + (channel * d_i)[None, :] + tap_in * d_t,
                total.to(dweight.dtype.element_ty),
                mask=inside,
            )
