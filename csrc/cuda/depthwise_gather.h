// y from x, or dx from dy: kernels of up to 7x7 taps a class, stride 1 or 2 within a class.
//
// A block has up to 64 channels and a range of tiles. While it computes one tile, the next one is on its way to shared
// memory; the first is on its way while the row is drawn and SW made. A thread has two channels and strips of kRows x
// kColumns positions: a row of the source is read once, and met by all kernel rows that reach it. Taps are skipped by bits
// of a mask that is the same for all threads of a class; rows of the source that no active tap reaches are not read.
#pragma once

#include "depthwise_tile.h"

namespace wat {

// Positions of the result that a thread computes at once. Of stride 2, fewer: a row serves fewer of them.
template <int S>
constexpr int kStripRows = S == 1 ? 4 : 2;
constexpr int kStripColumns = 2;

// The strip that a thread computes: its class, and where it begins in result and source.
struct DepthwiseStrip {
  int32_t qh, qw;        // classes
  int32_t row, column;   // in the tile of the result
  int32_t source_row, source_column;  // in the tile of the source
};

template <int S>
WAT_DEVICE DepthwiseStrip strip_of(const DepthwiseProblem& p, int32_t number) {
  const DepthwiseAxis &v = p.vertical, &h = p.horizontal;
  DepthwiseStrip strip;
  const int32_t rest = divide(number, p.by_groups_w), group_w = number - rest * p.groups_w;
  const int32_t classes = divide(rest, p.by_groups_h), group_h = rest - classes * p.groups_h;
  strip.qh = divide(classes, p.by_classes_w);
  strip.qw = classes - strip.qh * h.classes;
  strip.row = strip.qh + v.classes * group_h * kStripRows<S>;
  strip.column = strip.qw + h.classes * group_w * kStripColumns;
  strip.source_row = v.base[strip.qh] - v.lowest + v.source_step * S * group_h * kStripRows<S>;
  strip.source_column = h.base[strip.qw] - h.lowest + h.source_step * S * group_w * kStripColumns;
  return strip;
}

// Which of the block's pairs of channels a thread has, and which of the strips that run at once.
template <bool kLast>
WAT_DEVICE int32_t pair_of(const DepthwiseProblem& p, int thread) {
  return kLast ? thread % p.pairs : thread / p.strips_at_once;
}

template <bool kLast>
WAT_DEVICE int32_t first_strip_of(const DepthwiseProblem& p, int thread) {
  return kLast ? thread / p.pairs : thread % p.strips_at_once;
}

// A class's mask of active taps, kept in two registers.
template <int kTaps>
struct TapMask {
  uint32_t low, high;

  WAT_DEVICE_MEMBER bool any(uint64_t bits) const {
    return (low & static_cast<uint32_t>(bits)) != 0 || (high & static_cast<uint32_t>(bits >> 32)) != 0;
  }
  // Whether a tap is active that reads row `row` of a strip's source rows.
  WAT_DEVICE_MEMBER bool needs_row(int row, int rows, int S) const {
    uint64_t bits = 0;
    WAT_UNROLL
    for (int r = 0; r < rows; ++r) {
      const int a = row - r * S;
      if (a >= 0 && a < kTaps) bits |= ((uint64_t{1} << kTaps) - 1) << (a * kTaps);
    }
    return any(bits);
  }
};

template <int kTaps>
WAT_DEVICE TapMask<kTaps> mask_of(const DepthwiseProblem& p, const char* shared, int32_t qh, int32_t qw) {
  const uint32_t* const at = reinterpret_cast<const uint32_t*>(shared + p.at_masks) + 2 * (qh * p.horizontal.classes + qw);
  return {at[0], at[1]};
}

// f(a, b, rows) for each active tap of a strip; rows[r * S + a][j * S + b] is what position (r, j) meets at tap (a, b).
template <int kElement, bool kLast, int kTaps, int S, class F>
WAT_DEVICE void for_each_active_tap(const TileReader<kElement, kLast>& reader, const TapMask<kTaps>& mask,
                                    const DepthwiseStrip& strip, int32_t step_h, int32_t step_w, const F& f) {
  constexpr int kRows = kStripRows<S>, kSourceRows = (kRows - 1) * S + kTaps, kSourceColumns = (kStripColumns - 1) * S + kTaps;
  float rows[kSourceRows][kSourceColumns][2];
  WAT_UNROLL
  for (int a = 0; a < kTaps; ++a) {
    WAT_UNROLL
    for (int row = 0; row < kSourceRows; ++row) {  // those that kernel row a is the first to meet
      if ((row > (kRows - 1) * S ? row - (kRows - 1) * S : row % S) != a) continue;
      if (mask.needs_row(row, kRows, S)) {
        reader.read(strip.source_row + row * step_h, strip.source_column, step_w, rows[row]);
      } else {
        WAT_UNROLL
        for (int i = 0; i < kSourceColumns; ++i) rows[row][i][0] = rows[row][i][1] = 0.0f;
      }
    }
    WAT_UNROLL
    for (int b = 0; b < kTaps; ++b) {
      if (mask.any(uint64_t{1} << (a * kTaps + b))) f(a, b, rows);
    }
  }
}

template <int kElement, bool kLast, int kTaps, int S>
WAT_DEVICE void gather_strip(const DepthwiseProblem& p, const DepthwiseBlock& block, const DepthwiseTile& result,
                             const TileReader<kElement, kLast>& reader, char* shared, int32_t pair, int32_t number) {
  constexpr int kRows = kStripRows<S>;
  const DepthwiseStrip strip = strip_of<S>(p, number);
  if (result.row + strip.row >= p.result.height || result.column + strip.column >= p.result.width) return;
  const DepthwiseAxis &v = p.vertical, &h = p.horizontal;
  const float* const bias = reinterpret_cast<const float*>(shared + p.at_bias) + 2 * pair;
  float sum[kRows][kStripColumns][2];
  WAT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    WAT_UNROLL
    for (int j = 0; j < kStripColumns; ++j) sum[r][j][0] = bias[0], sum[r][j][1] = bias[1];
  }
  const int32_t tap_h = v.tap_step * p.kernel_w * p.channels, tap_w = h.tap_step * p.channels;
  const float* const table = reinterpret_cast<const float*>(shared + p.at_table) + 2 * pair +
                             (v.first_tap[strip.qh] * p.kernel_w + h.first_tap[strip.qw]) * p.channels;
  for_each_active_tap<kElement, kLast, kTaps, S>(
      reader, mask_of<kTaps>(p, shared, strip.qh, strip.qw), strip, v.source_step, h.source_step,
      [&](int a, int b, const auto& rows) {
        const float* const at = table + a * tap_h + b * tap_w;
        const float first = at[0], second = at[1];
        WAT_UNROLL
        for (int r = 0; r < kRows; ++r) {
          WAT_UNROLL
          for (int j = 0; j < kStripColumns; ++j) {
            sum[r][j][0] += first * rows[r * S + a][j * S + b][0];
            sum[r][j][1] += second * rows[r * S + a][j * S + b][1];
          }
        }
      });
  char* const target = shared + p.at_result +
                       (kLast ? pair * 2 * kElement
                              : misalignment(run_address(p, p.result, block, result)) + 2 * pair * p.result.pitch);
  WAT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const int32_t row = strip.row + r * v.classes;
    if (row >= p.tile_rows || result.row + row >= p.result.height) continue;
    WAT_UNROLL
    for (int j = 0; j < kStripColumns; ++j) {
      const int32_t column = strip.column + j * h.classes;
      if (column >= p.tile_columns || result.column + column >= p.result.width) continue;
      if constexpr (kLast) {
        char* const at = target + (row * p.tile_columns + column) * p.result.pitch;
        if constexpr (kElement == 4) {
          reinterpret_cast<float*>(at)[0] = sum[r][j][0], reinterpret_cast<float*>(at)[1] = sum[r][j][1];
        } else {
          const bool brain = p.scalar == Scalar::kBFloat16;
          const uint32_t low = round_bits(brain, sum[r][j][0]);
          const uint32_t high = round_bits(brain, sum[r][j][1]);
          *reinterpret_cast<uint32_t*>(at) = low | high << 16;
        }
      } else {
        char* const at = target + (row * p.result.width + column) * p.element;
        write_number(at, 0, p.scalar, sum[r][j][0]);
        if (2 * pair + 1 < block.channels) write_number(at + p.result.pitch, 0, p.scalar, sum[r][j][1]);
      }
    }
  }
}

template <int kElement, bool kLast, int kTaps, int S>
WAT_DEVICE void gather_block(const DepthwiseProblem& p, int64_t index, char* shared) {
  const int thread = threadIdx.x;
  const DepthwiseBlock block = block_of(p, index);
  const int32_t pair = pair_of<kLast>(p, thread), first_strip = first_strip_of<kLast>(p, thread);
  const bool has_work = pair < p.pairs && 2 * pair < block.channels && first_strip < p.strips_at_once;
  const int32_t strips = p.vertical.classes * p.horizontal.classes * p.groups_h * p.groups_w;
  int64_t drawn = -1;
  for (int64_t w = block.begin - 1; w < block.end; ++w) {
    if (w + 1 < block.end) {
      char* const to = shared + p.at_source + ((w + 1 - block.begin) & 1) * p.source.bytes;
      stage<kLast>(p, p.source, block, source_tile(p, result_tile(p, w + 1)), to, thread);
    }
    end_of_copies();  // a group for every tile, also where there is none
    if (w < block.begin) continue;
    const DepthwiseTile result = result_tile(p, w);
    const int64_t shadow = result.n / p.chunk;
    if (shadow != drawn) make_table<true>(p, block, static_cast<uint32_t>(shadow), kTaps, shared);
    drawn = shadow;
    wait_for_all_but_last();
    __syncthreads();
    if (has_work) {
      const char* const staged = shared + p.at_source + ((w - block.begin) & 1) * p.source.bytes;
      const TileReader<kElement, kLast> reader(p, p.source, block, source_tile(p, result), staged, pair);
      for (int32_t strip = first_strip; strip < strips; strip += p.strips_at_once) {
        gather_strip<kElement, kLast, kTaps, S>(p, block, result, reader, shared, pair, strip);
      }
    }
    __syncthreads();
    unstage<kLast>(p, p.result, block, result, shared + p.at_result, thread);
  }
}

}  // namespace wat
