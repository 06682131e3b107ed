// One row of a tap table as the kernels read it: an ELL line (wat_kernels/tap_table.py TableTensors),
//   [n, output tap x K, input tap x K x E, coefficient (fp32 bits) x K x E]
// and the draw of the row.
#pragma once

#include <cstdint>
#include <cstring>

#include "philox.h"

namespace wat {

struct TapRow {
  const int32_t* line;
  int32_t taps;   // K
  int32_t width;  // E
};

// Active output taps; they come first and in ascending order.
WAT_HOST_DEVICE int32_t tap_count(const TapRow& row) { return row.line[0]; }

WAT_HOST_DEVICE int32_t tap_output(const TapRow& row, int32_t j) { return row.line[1 + j]; }

WAT_HOST_DEVICE int32_t tap_input(const TapRow& row, int32_t j, int32_t e) {
  return row.line[1 + row.taps + j * row.width + e];
}

WAT_HOST_DEVICE float tap_coefficient(const TapRow& row, int32_t j, int32_t e) {
  float value;
  const int32_t bits = row.line[1 + row.taps + row.taps * row.width + j * row.width + e];
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// Entries of one output tap that are not padding. A coefficient is never zero in an entry that is used.
WAT_HOST_DEVICE int32_t tap_entries(const TapRow& row, int32_t j) {
  int32_t n = 0;
  while (n < row.width && tap_coefficient(row, j, n) != 0.0f) ++n;
  return n;
}

// E of a line of `length` int32 for K taps.
WAT_HOST_DEVICE int64_t ell_width(int64_t length, int64_t taps) { return (length - 1 - taps) / (2 * taps); }

// Row of a table for the word u: the number of thresholds <= u. The last threshold is 2**32, so the row exists.
WAT_HOST_DEVICE int64_t row_of_word(const int64_t* thresholds, int64_t rows, uint32_t u) {
  int64_t row = 0;
  while (row < rows - 1 && thresholds[row] <= static_cast<int64_t>(u)) ++row;
  return row;
}

WAT_HOST_DEVICE int64_t draw_row(const int64_t* thresholds, int64_t rows, uint64_t key, uint32_t shadow) {
  return row_of_word(thresholds, rows, row_words(key, shadow).word[0]);
}

}  // namespace wat
