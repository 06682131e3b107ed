"""Forward, data gradient and weight gradient of a linear layer whose weight is moved and perturbed on the way in.

A tile of SW is read from the plain weight at other addresses (`grid`), multiplied by its noise in registers, and used.
Lines of SW that nothing was moved into are not visited.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wat_kernels.triton_gemm import (
    CHAIN,
    NOT_SPECIALIZED,
    add_compensated,
    add_up_parts,
    dot,
    splits_of,
    sum_of_products,
    tile_of,
)
from wat_kernels.triton_philox import noise_at, noise_factor, row_of, row_words


@triton.jit
def draw_grid(key, shadow, thresholds, grid, rows, GRID: tl.constexpr):
    """(flip_out, flip_in, shift_out, shift_in) of one shadow, int32 scalars; see `wat_kernels.matrix_grid`."""
    if GRID:
        word_row, word_out, word_in, _ = row_words(key, shadow)
        line = grid + row_of(word_row, thresholds, rows) * 4
        flip_out = tl.load(line).to(tl.int32)
        flip_in = tl.load(line + 1).to(tl.int32)
        return flip_out, flip_in, _shift(tl.load(line + 2), word_out), _shift(tl.load(line + 3), word_in)
    else:
        zero = tl.cast(shadow, tl.int32) * 0
        return zero, zero, zero, zero


@triton.jit
def _shift(maximum, word):
    fixed = ((2 * maximum * (word >> 8).to(tl.int64)) >> 24) - maximum
    return ((fixed + 32768) >> 16).to(tl.int32)


@triton.jit
def source_of(line, size, flip, shift, GRID: tl.constexpr):
    """Where lines of SW come from along an axis of `size`: (index, inside), tensors of the shape of `line`."""
    inside = line < size
    if GRID:
        line = tl.where(flip != 0, size - 1 - line, line) - shift
        inside &= (line >= 0) & (line < size)
    return line, inside


@triton.jit
def span_of(size, flip, shift, GRID: tl.constexpr):
    """[first, last) of the lines of SW that hold something of PW along an axis of `size`."""
    first = 0
    last = size
    if GRID:
        low = min(max(shift, 0), size)
        high = max(min(size + shift, size), low)
        first = tl.where(flip != 0, size - high, low)
        last = tl.where(flip != 0, size - low, high)
    return first, last


@triton.jit
def shadow_tile(
    weight, row, column, first_column, inside, out, w_o, w_i, key, shadow, in_features, scale, cut,
    NOISE: tl.constexpr, PACKED: tl.constexpr, INDEX: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of SW. row, column: lines of PW, (BO,) and (BI,); out: lines of SW, first_column: of the tile in SW."""
    tile = tl.load(
        weight + (row.to(INDEX) * w_o)[:, None] + (column.to(INDEX) * w_i)[None, :], mask=inside, other=0.0
    )  # (BO, BI)
    if NOISE != 0:
        element = out.to(INDEX) * in_features
        factor = noise_factor(key, shadow, element, first_column, scale, cut, NOISE, PACKED, COLUMNS)
        tile = (tile.to(tl.float32) * factor).to(weight.dtype.element_ty)
    return tile


@triton.jit
def _sum_over_rows_of_sw(
    rows, weight, gain, line, inside_m, first, last, size, flip, shift, own, own_source, inside_n, first_own, rows_r,
    rows_c, w_o, w_i, key, shadow, in_features, scale, cut,
    BACKWARD: tl.constexpr, GRID: tl.constexpr, GAIN: tl.constexpr, NOISE: tl.constexpr, PACKED: tl.constexpr,
    INDEX: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The main loop of forward and data gradient: rows of x or of dy times SW^T or SW. Returns (BM, BN) fp32.

    first, last, size, flip, shift: of the axis of SW that is summed over, input features or, where BACKWARD, outputs
    own:   (BN,) lines of SW's other axis, own_source: where in PW they come from; first_own: the first of them
    """
    accumulator = tl.zeros((BM, BN), tl.float32)
    for block in range(first // BK, tl.cdiv(last, BK)):
        summed = block * BK + tl.arange(0, BK)
        source, inside_k = source_of(summed, size, flip, shift, GRID)
        left = tl.load(
            rows + (line * rows_r)[:, None] + (summed.to(INDEX) * rows_c)[None, :],
            mask=inside_m[:, None] & (summed < size)[None, :],
            other=0.0,
        )  # (BM, BK)
        if BACKWARD:
            if GAIN == 2:  # the gain stands on the features that are summed over
                factor = tl.load(gain + summed, mask=inside_k, other=0.0).to(tl.float32)
                left = (left.to(tl.float32) * factor[None, :]).to(left.dtype)
            tile = shadow_tile(
                weight, source, own_source, first_own, inside_k[:, None] & inside_n[None, :], summed, w_o, w_i, key,
                shadow, in_features, scale, cut, NOISE, PACKED, INDEX, BN,
            )  # fmt: skip
        else:
            tile = shadow_tile(
                weight, own_source, source, block * BK, inside_n[:, None] & inside_k[None, :], own, w_o, w_i, key,
                shadow, in_features, scale, cut, NOISE, PACKED, INDEX, BK,
            ).T  # fmt: skip
        accumulator = dot(left, tile, accumulator, PRECISION)
    return accumulator


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def linear_fwd_kernel(
    x, weight, bias, gain, y, key, thresholds, grid, scale, cut, rows, shadows, chunk, in_features, out_features,
    x_r, x_i, w_o, w_i, y_r, y_o,
    GRID: tl.constexpr, BIAS: tl.constexpr, GAIN: tl.constexpr, NOISE: tl.constexpr, PACKED: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """y[chunk s] = gain * x[chunk s] SW[s]^T + bias for one (BM, BN) tile. chunk: rows of x for each shadow."""
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    chunk_tiles = tl.cdiv(chunk, BM)
    tile_m, tile_n = tile_of(tl.program_id(0), shadows * chunk_tiles, tl.cdiv(out_features, BN), GROUP_M)
    shadow = tile_m // chunk_tiles
    drawn = tl.load(key)
    flip_out, flip_in, shift_out, shift_in = draw_grid(drawn, shadow, thresholds, grid, rows, GRID)

    in_chunk = (tile_m % chunk_tiles) * BM + tl.arange(0, BM)
    inside_m = in_chunk < chunk
    line = (shadow * chunk + in_chunk).to(INDEX)
    out = tile_n * BN + tl.arange(0, BN)
    row, inside_n = source_of(out, out_features, flip_out, shift_out, GRID)
    first, last = span_of(in_features, flip_in, shift_in, GRID)
    first_out, last_out = span_of(out_features, flip_out, shift_out, GRID)
    if GRID:  # a tile of outputs that nothing was moved into
        last = tl.where((tile_n * BN < last_out) & (tile_n * BN + BN > first_out), last, first)

    accumulator = _sum_over_rows_of_sw(
        x, weight, gain, line, inside_m, first, last, in_features, flip_in, shift_in, out, row, inside_n, tile_n * BN, x_r,
        x_i, w_o, w_i, drawn, shadow, in_features, scale, cut, False, GRID, GAIN, NOISE, PACKED, INDEX, PRECISION, BM, BN,
        BK,
    )  # fmt: skip
    inside_out = out < out_features
    if GAIN == 1:
        accumulator *= tl.load(gain).to(tl.float32)
    if GAIN == 2:
        accumulator *= tl.load(gain + out, mask=inside_out, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        accumulator += tl.load(bias + out, mask=inside_out, other=0.0).to(tl.float32)[None, :]
    tl.store(
        y + (line * y_r)[:, None] + (out.to(INDEX) * y_o)[None, :],
        accumulator.to(y.dtype.element_ty),
        mask=inside_m[:, None] & inside_out[None, :],
    )


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def linear_bwd_data_kernel(
    dy, weight, gain, dx, key, thresholds, grid, scale, cut, rows, shadows, chunk, in_features, out_features,
    y_r, y_o, w_o, w_i, x_r, x_i,
    GRID: tl.constexpr, GAIN: tl.constexpr, NOISE: tl.constexpr, PACKED: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """dx[chunk s] = (gain * dy[chunk s]) SW[s] for one (BM, BN) tile."""
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    chunk_tiles = tl.cdiv(chunk, BM)
    tile_m, tile_n = tile_of(tl.program_id(0), shadows * chunk_tiles, tl.cdiv(in_features, BN), GROUP_M)
    shadow = tile_m // chunk_tiles
    drawn = tl.load(key)
    flip_out, flip_in, shift_out, shift_in = draw_grid(drawn, shadow, thresholds, grid, rows, GRID)

    in_chunk = (tile_m % chunk_tiles) * BM + tl.arange(0, BM)
    inside_m = in_chunk < chunk
    line = (shadow * chunk + in_chunk).to(INDEX)
    into = tile_n * BN + tl.arange(0, BN)
    column, inside_n = source_of(into, in_features, flip_in, shift_in, GRID)
    first, last = span_of(out_features, flip_out, shift_out, GRID)
    first_in, last_in = span_of(in_features, flip_in, shift_in, GRID)
    if GRID:
        last = tl.where((tile_n * BN < last_in) & (tile_n * BN + BN > first_in), last, first)

    accumulator = _sum_over_rows_of_sw(
        dy, weight, gain, line, inside_m, first, last, out_features, flip_out, shift_out, into, column, inside_n,
        tile_n * BN, y_r, y_o, w_o, w_i, drawn, shadow, in_features, scale, cut, True, GRID, GAIN, NOISE, PACKED, INDEX,
        PRECISION, BM, BN, BK,
    )  # fmt: skip
    if GAIN == 1:
        accumulator *= tl.load(gain).to(tl.float32)
    tl.store(
        dx + (line * x_r)[:, None] + (into.to(INDEX) * x_i)[None, :],
        accumulator.to(dx.dtype.element_ty),
        mask=inside_m[:, None] & (into < in_features)[None, :],
    )


@triton.jit
def _sum_of_blocks(
    dy, x, first, last, first_row, chunk, y_r, x_r, y_column, x_column, inside_o, inside_i,
    PRECISION: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """The main loop of the weight gradient: dSW over the blocks of BP rows from `first` to `last`. Returns (BO, BI) fp32."""
    accumulator = tl.zeros((BO, BI), tl.float32)
    for block in range(first, last):
        in_chunk = block * BP + tl.arange(0, BP)
        inside = in_chunk < chunk
        line = (first_row + in_chunk).to(y_column.dtype)
        grad = tl.load(
            dy + (line * y_r)[:, None] + y_column, mask=inside[:, None] & inside_o[None, :], other=0.0
        )  # (BP, BO)
        rows_of_x = tl.load(
            x + (line * x_r)[:, None] + x_column, mask=inside[:, None] & inside_i[None, :], other=0.0
        )  # (BP, BI)
        accumulator = dot(tl.trans(grad), rows_of_x, accumulator, PRECISION)
    return accumulator


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def linear_bwd_weight_kernel(
    dy, x, weight, gain, dweight, dgain, parts, arrived, key, thresholds, grid, scale, cut, rows, shadows, chunk,
    in_features, out_features, y_r, y_o, x_r, x_i, w_o, w_i, d_o, d_i, programs,
    GRID: tl.constexpr, NEEDS_WEIGHT: tl.constexpr, NEEDS_GAIN: tl.constexpr, GAIN: tl.constexpr, NOISE: tl.constexpr,
    PACKED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BO: tl.constexpr, BI: tl.constexpr, BP: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """dPW of one (BO, BI) tile of PW: gain * sum over shadows of grid^T ((dy^T x) * noise).

    dgain: (parts of the sum * shadows if there is a grid * tiles of input features, out) fp32, zero before: what each
           program finds of <PW, dPW> before the gain; to be summed
    parts, arrived: see `add_up_parts`
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    tiles_o = tl.cdiv(out_features, BO)
    tiles_i = tl.cdiv(in_features, BI)
    tiles = tiles_o * tiles_i
    blocks = tl.cdiv(chunk, BP)
    splits = splits_of(tiles, blocks, programs)
    split = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    tile_o, tile_i = tile_of(tile, tiles_o, tiles_i, GROUP_M)
    row = tile_o * BO + tl.arange(0, BO)
    column = tile_i * BI + tl.arange(0, BI)
    each = tl.cdiv(blocks, splits)
    first = split * each
    last = min(first + each, blocks)
    drawn = tl.load(key)
    total = tl.zeros((BO, BI), tl.float32)
    product = tl.zeros((BO,), tl.float32)
    inside_w = (row < out_features)[:, None] & (column < in_features)[None, :]
    for shadow in range(shadows):
        flip_out, flip_in, shift_out, shift_in = draw_grid(drawn, shadow, thresholds, grid, rows, GRID)
        out, inside_o = target_of(row, out_features, flip_out, shift_out, GRID)
        into, inside_i = target_of(column, in_features, flip_in, shift_in, GRID)
        accumulator = tl.zeros((BO, BI), tl.float32)
        y_column = (out.to(INDEX) * y_o)[None, :]
        x_column = (into.to(INDEX) * x_i)[None, :]
        if x.dtype.element_ty == tl.float32:
            lost = tl.zeros((BO, BI), tl.float32)
            for start in range(first, last, CHAIN):
                part = _sum_of_blocks(
                    dy, x, start, min(start + CHAIN, last), shadow * chunk, chunk, y_r, x_r, y_column, x_column,
                    inside_o, inside_i, PRECISION, BO, BI, BP,
                )  # fmt: skip
                accumulator, lost = add_compensated(accumulator, lost, part)
        else:
            accumulator = _sum_of_blocks(
                dy, x, first, last, shadow * chunk, chunk, y_r, x_r, y_column, x_column, inside_o, inside_i, PRECISION,
                BO, BI, BP,
            )  # fmt: skip
        if NOISE != 0:
            element = out.to(INDEX) * in_features
            if GRID:
                accumulator *= noise_at(drawn, shadow, element[:, None] + into[None, :], scale, cut, NOISE)
            else:
                accumulator *= noise_factor(drawn, shadow, element, tile_i * BI, scale, cut, NOISE, PACKED, BI)
        if NEEDS_GAIN:
            plain = tl.load(
                weight + (row.to(INDEX) * w_o)[:, None] + (column.to(INDEX) * w_i)[None, :], mask=inside_w, other=0.0
            )
            product += sum_of_products(accumulator, plain.to(tl.float32))
            if GRID:  # each shadow has other output features in these lines
                place = ((split * shadows + shadow) * tiles_i + tile_i).to(tl.int64) * out_features
                tl.store(dgain + place + out, product, mask=inside_o)
                product = tl.zeros((BO,), tl.float32)
        if GAIN == 2:  # after a grid, lines of different output features meet in one line of PW
            accumulator *= tl.load(gain + out, mask=inside_o, other=0.0).to(tl.float32)[:, None]
        total += accumulator

    if NEEDS_GAIN and not GRID:
        tl.store(dgain + (split * tiles_i + tile_i).to(tl.int64) * out_features + row, product, mask=row < out_features)
    if NEEDS_WEIGHT:
        finished = True
        if parts is not None:  # noqa: SIM102  (this question is answered by the compiler)
            if splits > 1:
                total, finished = add_up_parts(total, parts, arrived, split, splits, tile, tiles, BO, BI)
        if finished:
            if GAIN == 1:
                total *= tl.load(gain).to(tl.float32)
            tl.store(
                dweight + (row.to(INDEX) * d_o)[:, None] + (column.to(INDEX) * d_i)[None, :],
                total.to(dweight.dtype.element_ty),
                mask=inside_w,
            )


@triton.jit
def target_of(line, size, flip, shift, GRID: tl.constexpr):
    """Where lines of PW go in SW along an axis of `size`, the inverse of `source_of`: (index, inside)."""
    inside = line < size
    if GRID:
        moved = line + shift
        inside &= (moved >= 0) & (moved < size)
        line = tl.where(flip != 0, size - 1 - moved, moved)
    return line, inside
