"""The passes of a convolution with stride 1 on chips that move boxes: image tiles by the tensor memory accelerator.

An image (N, H, W, C) is a descriptor. A tile of pixels is a box of it, (BI images, BH rows, BW columns), moved by the tap;
what lies outside comes as zeros, so that padding needs no mask and a tap no address. The weight (O, taps * I) is a
descriptor, too. Forward and data gradient are one gather with the roles of x and y exchanged.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wat_kernels.ops.conv.triton_row import is_unit, pack, pack_inputs, row_line, unpack
from wat_kernels.triton_gemm import NOT_SPECIALIZED, add_up_parts, dot, splits_of, sum_of_products
from wat_kernels.triton_philox import noise_factor


@triton.jit
def _tile_of_sw(
    weight, first_out, first_in, gain, line, slot, inputs, trip, tap, key, shadow, in_channels, scale, cut,
    MIX: tl.constexpr, TAPS: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr,
    SCALED: tl.constexpr, NOISE: tl.constexpr, PACKED: tl.constexpr, WIDE: tl.constexpr, BO: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """(BO, BC) of SW at one output tap; where MIX is false, the boxes of the weight as they are. SCALED: times the gain"""
    if not MIX:
        return weight.load([first_out, unpack(inputs[0:WORDS], trip, BITS, WORDS) * in_channels + first_in])
    tile = tl.zeros((BO, BC), tl.float32)
    for e in tl.static_range(WIDTH):
        tap_in = unpack(inputs[e * WORDS : (e + 1) * WORDS], trip, BITS, WORDS)
        coefficient = tl.load(line + 1 + TAPS + TAPS * WIDTH + slot * WIDTH + e).to(tl.float32, bitcast=True)
        tile += coefficient * weight.load([first_out, tap_in * in_channels + first_in]).to(tl.float32)
    out_channel = first_out + tl.arange(0, BO)
    if NOISE != 0:
        element = (out_channel.to(tl.int64 if WIDE else tl.int32) * TAPS + tap) * in_channels
        tile *= noise_factor(key, shadow, element, first_in, scale, cut, NOISE, PACKED, BC)
    if SCALED:
        tile *= tl.load(gain + out_channel, mask=out_channel < weight.shape[0], other=0.0).to(tl.float32)[:, None]
    return tile.to(weight.dtype)


@triton.jit
def _gather_sum(
    image, weight, gain, first_image, row, column, first_sum, first_column, first_out, line, key, shadow, slots, outputs,
    inputs, trips, sums, in_channels, pad_top, pad_left, dil_h, dil_w, scale, cut,
    BACKWARD: tl.constexpr, MIX: tl.constexpr, TAPS: tl.constexpr, KERNEL_W: tl.constexpr, WIDTH: tl.constexpr,
    BITS: tl.constexpr, WORDS: tl.constexpr, SCALED: tl.constexpr, NOISE: tl.constexpr, PACKED: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The main loop: blocks of channels outside, taps inside. Returns (BN, BI * BH * BW) fp32.

    The image is the operand on the right: on the left one Triton 3.6 sees no load behind the reshape, brings it through
    registers, and results were wrong on a GPU.
    """
    total = tl.zeros((BN, BI * BH * BW), tl.float32)
    for step in range(trips * tl.cdiv(sums, BK)):
        block = step // trips
        trip = step - block * trips
        tap = unpack(outputs, trip, BITS, WORDS)
        down = (tap // KERNEL_W) * dil_h - pad_top
        right = (tap % KERNEL_W) * dil_w - pad_left
        slot = unpack(slots, trip, BITS, WORDS) if MIX else 0
        if BACKWARD:
            tile = _tile_of_sw(
                weight, first_out + block * BK, first_column, gain, line, slot, inputs, trip, tap, key, shadow,
                in_channels, scale, cut, MIX, TAPS, WIDTH, BITS, WORDS, SCALED, NOISE, PACKED, WIDE, BK, BN,
            ).T  # fmt: skip
            pixels = image.load([first_image, row - down, column - right, first_sum + block * BK])
        else:
            tile = _tile_of_sw(
                weight, first_out, block * BK, gain, line, slot, inputs, trip, tap, key, shadow, in_channels, scale,
                cut, MIX, TAPS, WIDTH, BITS, WORDS, SCALED, NOISE, PACKED, WIDE, BN, BK,
            )  # fmt: skip
            pixels = image.load([first_image, row + down, column + right, first_sum + block * BK])
        total = dot(tile, pixels.reshape(BI * BH * BW, BK).T, total, PRECISION)
    return total


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def conv2d_gather_box_kernel(
    image, weight, bias, gain, out, key, thresholds, taps, scale, cut, rows, shadows, images, groups, in_channels,
    out_channels, height, width, pad_top, pad_left, dil_h, dil_w,
    BACKWARD: tl.constexpr, TAPS: tl.constexpr, KERNEL_W: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    BITS: tl.constexpr, WORDS: tl.constexpr, BIAS: tl.constexpr, GAIN: tl.constexpr, NOISE: tl.constexpr,
    PACKED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One box of pixels times BN channels of y, or of dx where BACKWARD, of one chunk and group.

    image:  x, or dy; out: y, or dx; both descriptors of (N, H, W, C). weight: a descriptor of (O, TAPS * in_channels)
    images: in a chunk; a box of several images divides them where there are several chunks
    height, width: of out. The others as in `triton_kernels.conv2d_fwd_kernel`
    """
    tiles_h = tl.cdiv(height, BH)
    tiles_w = tl.cdiv(width, BW)
    chunk_tiles = tl.cdiv(images, BI) * tiles_h * tiles_w
    columns = in_channels if BACKWARD else out_channels
    sums = out_channels if BACKWARD else in_channels
    tiles_n = tl.cdiv(columns, BN)
    tile_n = tl.program_id(0) % tiles_n
    tile_m = tl.program_id(0) // tiles_n % (shadows * chunk_tiles)
    group = tl.program_id(0) // (tiles_n * shadows * chunk_tiles)
    shadow = tile_m // chunk_tiles
    box = tile_m % chunk_tiles
    column = box % tiles_w * BW
    row = box // tiles_w % tiles_h * BH
    first_image = shadow * images + box // (tiles_w * tiles_h) * BI

    drawn = tl.load(key)
    line = row_line(drawn, shadow, thresholds, rows, taps, 1 + TAPS + 2 * TAPS * WIDTH)
    slot = tl.arange(0, SLOTS)
    trips = tl.load(line)
    active = slot < trips
    outputs = pack(tl.load(line + 1 + slot, mask=slot < TAPS, other=0), active, BITS, WORDS)
    inputs = pack_inputs(line, active, TAPS, WIDTH, SLOTS, BITS, WORDS)
    slots = pack(slot, active, BITS, WORDS)

    SCALED: tl.constexpr = BACKWARD and GAIN == 2  # the gain stands on the channels that are summed over
    first_out = group * out_channels
    if not BACKWARD:
        first_out += tile_n * BN
    unit = False if NOISE != 0 or SCALED else is_unit(line, TAPS, WIDTH, SLOTS)
    if unit:
        total = _gather_sum(
            image, weight, gain, first_image, row, column, group * sums, tile_n * BN, first_out, line, drawn, shadow,
            slots, outputs, inputs, trips, sums, in_channels, pad_top, pad_left, dil_h, dil_w, scale, cut, BACKWARD,
            False, TAPS, KERNEL_W, WIDTH, BITS, WORDS, SCALED, NOISE, PACKED, WIDE, PRECISION, BI, BH, BW, BN, BK,
        )  # fmt: skip
    else:
        total = _gather_sum(
            image, weight, gain, first_image, row, column, group * sums, tile_n * BN, first_out, line, drawn, shadow,
            slots, outputs, inputs, trips, sums, in_channels, pad_top, pad_left, dil_h, dil_w, scale, cut, BACKWARD,
            True, TAPS, KERNEL_W, WIDTH, BITS, WORDS, SCALED, NOISE, PACKED, WIDE, PRECISION, BI, BH, BW, BN, BK,
        )  # fmt: skip
    if GAIN == 1:
        total *= tl.load(gain).to(tl.float32)
    channel = tile_n * BN + tl.arange(0, BN)
    if GAIN == 2 and not BACKWARD:
        total *= tl.load(gain + first_out + tl.arange(0, BN), mask=channel < columns, other=0.0).to(tl.float32)[:, None]
    if BIAS:
        total += tl.load(bias + first_out + tl.arange(0, BN), mask=channel < columns, other=0.0).to(tl.float32)[:, None]
    found = total.T.to(out.dtype).reshape(BI, BH, BW, BN)
    out.store([first_image, row, column, group * columns + tile_n * BN], found)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def conv2d_bwd_weight_box_kernel(
    dy, x, weight, gain, dweight, dgain, parts, arrived, key, thresholds, taps_t, scale, cut, rows, images, groups,
    in_channels, out_channels, out_height, out_width, w_o, w_i, w_t, d_o, d_i, d_t, pad_top, pad_left, dil_h, dil_w,
    programs, TAPS: tl.constexpr, KERNEL_W: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    NEEDS_WEIGHT: tl.constexpr, NEEDS_GAIN: tl.constexpr, GAIN: tl.constexpr, NOISE: tl.constexpr,
    PACKED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BO: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dPW, of one shadow. Programs share what the drawn row needs: (BO, BC) tiles of the input taps that it reaches, and
    parts of the sum over boxes of pixels where those are fewer than programs; zeros go where no output tap reaches.

    dy, x: descriptors of (N, H, W, C). The others as in `triton_bwd_weight.conv2d_bwd_weight_kernel`
    """
    index = tl.int64 if WIDE else tl.int32
    tiles_i = tl.cdiv(in_channels, BC)
    tiles_o = tl.cdiv(out_channels, BO)
    tiles = tiles_i * tiles_o * groups
    tiles_h = tl.cdiv(out_height, BH)
    tiles_w = tl.cdiv(out_width, BW)
    boxes = tl.cdiv(images, BI) * tiles_h * tiles_w

    drawn = tl.load(key)
    line = row_line(drawn, 0, thresholds, rows, taps_t, 1 + TAPS + 2 * TAPS * WIDTH)
    reached = tl.load(line)
    wanted = programs // 2 if BO * BC > 128 * 64 else programs  # such a tile has a multiprocessor for itself
    splits = splits_of(tiles * max(reached, 1), boxes, wanted)
    program = tl.program_id(0)
    if program < tiles * reached * splits:
        tile = program % tiles
        trip = program // tiles % reached
        split = program // (tiles * reached)
        tile_i = tile % tiles_i
        tile_o = tile // tiles_i % tiles_o
        group = tile // (tiles_i * tiles_o)
        tap_in = tl.load(line + 1 + trip)
        first = (split.to(tl.int64) * boxes // splits).to(tl.int32)
        last = ((split + 1).to(tl.int64) * boxes // splits).to(tl.int32)
        inside_o = tile_o * BO + tl.arange(0, BO) < out_channels
        out_channel = group * out_channels + tile_o * BO + tl.arange(0, BO)
        channel = tile_i * BC + tl.arange(0, BC)
        first_y = group * out_channels + tile_o * BO
        first_x = group * in_channels + tile_i * BC

        total = tl.zeros((BO, BC), tl.float32)
        for e in range(WIDTH):
            entry = line + 1 + TAPS + trip * WIDTH + e
            tap = tl.load(entry)
            coefficient = tl.load(entry + TAPS * WIDTH).to(tl.float32, bitcast=True)
            down = (tap // KERNEL_W) * dil_h - pad_top
            right = (tap % KERNEL_W) * dil_w - pad_left
            accumulator = tl.zeros((BO, BC), tl.float32)
            for box in range(first, tl.where(coefficient != 0.0, last, first)):  # 0: an unused place of the line
                column = box % tiles_w * BW
                row = box // tiles_w % tiles_h * BH
                image = box // (tiles_w * tiles_h) * BI
                grad = dy.load([image, row, column, first_y]).reshape(BI * BH * BW, BO)
                pixels = x.load([image, row + down, column + right, first_x]).reshape(BI * BH * BW, BC)
                accumulator = dot(grad.T, pixels, accumulator, PRECISION)
            if NOISE != 0:
                element = (out_channel.to(index) * TAPS + tap) * in_channels
                accumulator *= noise_factor(drawn, 0, element, tile_i * BC, scale, cut, NOISE, PACKED, BC)
            total += coefficient * accumulator

        finished = True
        if parts is not None:  # noqa: SIM102  (this question is answered by the compiler)
            if splits > 1:
                total, finished = add_up_parts(
                    total, parts, arrived, split, splits, trip * tiles + tile, tiles * reached, BO, BC
                )
        if finished:
            inside = inside_o[:, None] & (channel < in_channels)[None, :]
            if NEEDS_GAIN:
                plain = tl.load(
                    weight + (out_channel.to(index) * w_o)[:, None] + (channel * w_i)[None, :] + tap_in * w_t,
                    mask=inside,
                    other=0.0,
                )
                product = sum_of_products(tl.where(inside, total, 0.0), plain.to(tl.float32))
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

    slot = tl.arange(0, SLOTS)
    taps = tl.load(line + 1 + slot, mask=(slot < TAPS) & (slot < reached), other=-1)
    missed = (tl.sum((taps[:, None] == slot[None, :]).to(tl.int32), 0) == 0) & (slot < TAPS)
    place = tl.cumsum(missed.to(tl.int32), 0) - 1
    for empty in range(program, (TAPS - reached) * tiles, tl.num_programs(0)):
        tile = empty % tiles
        tap_in = tl.sum(tl.where(missed & (place == empty // tiles), slot, 0))
        tile_i = tile % tiles_i
        in_group = tile // tiles_i % tiles_o * BO + tl.arange(0, BO)
        out_channel = tile // (tiles_i * tiles_o) * out_channels + in_group
        channel = tile_i * BC + tl.arange(0, BC)
        inside_o = in_group < out_channels
        if NEEDS_GAIN:
            tl.store(
                dgain + (tile_i * TAPS + tap_in) * groups * out_channels + out_channel,
                tl.zeros((BO,), tl.float32),
                mask=inside_o,
            )
        if NEEDS_WEIGHT:
            tl.store(
                dweight + (out_channel.to(index) * d_o)[:, None] + (channel * d_i)[None, :] + tap_in * d_t,
                tl.zeros((BO, BC), dweight.dtype.element_ty),
                mask=inside_o[:, None] & (channel < in_channels)[None, :],
            )
