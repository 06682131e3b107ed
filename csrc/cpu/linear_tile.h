// The inner loops of linear: a register tile, and the moves that bring operands into its layout. Include after
// target_*.h.
//
//   A: cells (operand.h), element (m, k) at m * AM + k * AK; both strides are compile-time constants, so every address is a constant
//      offset from one pointer
//   B: panel of cells, [k][kTileCols]
#pragma once

#include "noise_lanes.h"
#include "operand.h"

namespace wat::WAT_ISA {

constexpr int kTileCols = 2 * Vec::width;
// As many accumulators as the registers hold: 28 of 32, 12 of 16.
constexpr int kTileRows = Vec::width == 16 ? 14 : Vec::width == 8 ? 6 : 4;

// C[m, 0..cols) = or += sum over k of A[m, k] * B[k, 0..cols)
template <int rows, int AM, int AK>
static void tile(int64_t depth, const float* a, const float* b, float* c, int64_t c_row, int cols, bool add) {
  constexpr int W = Vec::width;
  Vec sum[rows][2];
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m) sum[m][0] = sum[m][1] = Vec::zero();
  for (int64_t k = 0; k < depth; ++k) {
    const Vec b0 = Vec::load(b), b1 = Vec::load(b + W);
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) {
      const Vec value = spread_cell(a + m * AM);
      sum[m][0] = multiply_cells(value, b0, sum[m][0]);
      sum[m][1] = multiply_cells(value, b1, sum[m][1]);
    }
    a += AK;
    b += kTileCols;
  }
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m, c += c_row) {
    if (cols == kTileCols) {
      (add ? Vec::load(c) + sum[m][0] : sum[m][0]).store(c);
      (add ? Vec::load(c + W) + sum[m][1] : sum[m][1]).store(c + W);
      continue;
    }
    float line[kTileCols];
    sum[m][0].store(line);
    sum[m][1].store(line + W);
    for (int j = 0; j < cols; ++j) c[j] = add ? c[j] + line[j] : line[j];
  }
}

using TileFunction = void (*)(int64_t, const float*, const float*, float*, int64_t, int, bool);

// tile<rows, AM, AK> for rows = 1 .. kTileRows
template <int AM, int AK>
static TileFunction tile_of(int rows) {
  static constexpr TileFunction table[14] = {
      tile<1, AM, AK>, tile<2, AM, AK>, tile<3, AM, AK>, tile<4, AM, AK>,
      tile<kTileRows < 5 ? 1 : 5, AM, AK>, tile<kTileRows < 6 ? 1 : 6, AM, AK>,
      tile<kTileRows < 7 ? 1 : 7, AM, AK>, tile<kTileRows < 8 ? 1 : 8, AM, AK>,
      tile<kTileRows < 9 ? 1 : 9, AM, AK>, tile<kTileRows < 10 ? 1 : 10, AM, AK>,
      tile<kTileRows < 11 ? 1 : 11, AM, AK>, tile<kTileRows < 12 ? 1 : 12, AM, AK>,
      tile<kTileRows < 13 ? 1 : 13, AM, AK>, tile<kTileRows < 14 ? 1 : 14, AM, AK>};
  return table[rows - 1];
}

// `total` rows cut into tiles of nearly equal height: 16 rows are 8 + 8, not 14 + 2. F: (int64_t first, int rows).
template <class F>
WAT_INLINE void for_each_tile(int64_t total, const F& f) {
  const int64_t tiles = (total + kTileRows - 1) / kTileRows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = total * t / tiles;
    f(first, static_cast<int>(total * (t + 1) / tiles - first));
  }
}

// n elements of a tensor from `first` on, as fp32; bf16 tensors need the buffer, fp32 ones are read where they are.
static inline const float* as_float(const void* data, bool bf16, int64_t first, int64_t n, float* buffer) {
  if (!bf16) return static_cast<const float*>(data) + first;
  const uint16_t* source = static_cast<const uint16_t*>(data) + first;
  int64_t j = 0;
  for (; j + Vec::width <= n; j += Vec::width) load_vec(source + j).store(buffer + j);
  for (; j < n; ++j) buffer[j] = from_bf16(source[j]);
  return buffer;
}

static inline void copy_as_float(const void* data, bool bf16, int64_t first, int64_t n, float* to) {
  const float* source = as_float(data, bf16, first, n, to);
  if (source != to) memcpy(to, source, n * sizeof(float));
}

// n elements of a tensor from `first` on, as cells of neighbours.
static inline void copy_as_cells(const void* data, bool bf16, int64_t first, int64_t n, float* to) {
#if defined(WAT_BF16_PAIRS)
  copy_cells(static_cast<const uint16_t*>(data) + first, n, to);
#else
  copy_as_float(data, bf16, first, n, to);
#endif
}

static inline void reverse(const float* source, int64_t n, float* to) {
  for (int64_t j = 0; j < n; ++j) to[j] = source[n - 1 - j];
}

#if WAT_TARGET == WAT_TARGET_IS_avx512

// to[k * to_row + j] = from[j * from_row + k] for j, k < 16
static inline void transpose_block(const float* from, int64_t from_row, float* to, int64_t to_row) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) a[j] = _mm512_loadu_ps(from + j * from_row);
#pragma GCC unroll 4
  for (int j = 0; j < 16; j += 4) {  // 4x4 blocks inside 128-bit lanes
    const __m512 t0 = _mm512_unpacklo_ps(a[j], a[j + 1]), t1 = _mm512_unpackhi_ps(a[j], a[j + 1]);
    const __m512 t2 = _mm512_unpacklo_ps(a[j + 2], a[j + 3]), t3 = _mm512_unpackhi_ps(a[j + 2], a[j + 3]);
    b[j] = _mm512_shuffle_ps(t0, t2, 0x44);
    b[j + 1] = _mm512_shuffle_ps(t0, t2, 0xEE);
    b[j + 2] = _mm512_shuffle_ps(t1, t3, 0x44);
    b[j + 3] = _mm512_shuffle_ps(t1, t3, 0xEE);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // then the 4x4 of lanes
    const __m512 t0 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x88), t1 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xDD);
    const __m512 t2 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x88);
    const __m512 t3 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xDD);
    _mm512_storeu_ps(to + j * to_row, _mm512_shuffle_f32x4(t0, t2, 0x88));
    _mm512_storeu_ps(to + (4 + j) * to_row, _mm512_shuffle_f32x4(t1, t3, 0x88));
    _mm512_storeu_ps(to + (8 + j) * to_row, _mm512_shuffle_f32x4(t0, t2, 0xDD));
    _mm512_storeu_ps(to + (12 + j) * to_row, _mm512_shuffle_f32x4(t1, t3, 0xDD));
  }
}

#elif WAT_TARGET == WAT_TARGET_IS_avx2

static inline void transpose_block(const float* from, int64_t from_row, float* to, int64_t to_row) {
  __m256 a[8], b[8];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) a[j] = _mm256_loadu_ps(from + j * from_row);
#pragma GCC unroll 2
  for (int j = 0; j < 8; j += 4) {
    const __m256 t0 = _mm256_unpacklo_ps(a[j], a[j + 1]), t1 = _mm256_unpackhi_ps(a[j], a[j + 1]);
    const __m256 t2 = _mm256_unpacklo_ps(a[j + 2], a[j + 3]), t3 = _mm256_unpackhi_ps(a[j + 2], a[j + 3]);
    b[j] = _mm256_shuffle_ps(t0, t2, 0x44);
    b[j + 1] = _mm256_shuffle_ps(t0, t2, 0xEE);
    b[j + 2] = _mm256_shuffle_ps(t1, t3, 0x44);
    b[j + 3] = _mm256_shuffle_ps(t1, t3, 0xEE);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_ps(to + j * to_row, _mm256_permute2f128_ps(b[j], b[j + 4], 0x20));
    _mm256_storeu_ps(to + (4 + j) * to_row, _mm256_permute2f128_ps(b[j], b[j + 4], 0x31));
  }
}

#else

static inline void transpose_block(const float* from, int64_t from_row, float* to, int64_t to_row) {
  for (int k = 0; k < Vec::width; ++k) {
    for (int j = 0; j < Vec::width; ++j) to[k * to_row + j] = from[j * from_row + k];
  }
}

#endif

}  // namespace wat::WAT_ISA
