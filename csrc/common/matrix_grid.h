// The draw of a MatrixGrid (wat_kernels/matrix_grid.py): how one shadow moves and mirrors a whole (out, in) matrix.
#pragma once

#include "philox.h"
#include "tap_table.h"

namespace wat {

// SW[o, i] = A[flip_out ? out-1-o : o, flip_in ? in-1-i : i] and A[o, i] = weight[o - shift_out, i - shift_in], nothing
// outside.
struct GridDraw {
  int64_t shift_out, shift_in;
  bool flip_out, flip_in;
};

// A shift of at most M / 2^16, rounded to the nearest whole number, from the upper 24 bits of a word.
WAT_HOST_DEVICE int64_t grid_shift(int64_t m, uint32_t word) {
  return ((((2 * m) * static_cast<int64_t>(word >> 8)) >> 24) - m + 32768) >> 16;
}

// thresholds: (rows,); grid: (rows, 4), flip_out, flip_in, M_out, M_in
WAT_HOST_DEVICE GridDraw draw_matrix_grid(const int64_t* thresholds, const int64_t* grid, int64_t rows, uint64_t key,
                                          uint32_t shadow) {
  const Philox4 words = row_words(key, shadow);
  const int64_t* row = grid + 4 * row_of_word(thresholds, rows, words.word[0]);
  GridDraw draw;
  draw.flip_out = row[0] != 0;
  draw.flip_in = row[1] != 0;
  draw.shift_out = grid_shift(row[2], words.word[1]);
  draw.shift_in = grid_shift(row[3], words.word[2]);
  return draw;
}

}  // namespace wat
