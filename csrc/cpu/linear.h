// All sizes, strides and pointers of one linear call, filled once in linear.cpp and passed by const reference.
//
//   y (rows, out) = gain * x (rows, in) SW^T + bias,  SW (out, in) = grid(weight) * eps
#pragma once

#include <cstdint>

#include "../common/matrix_grid.h"
#include "isa.h"

namespace wat {

struct LinearProblem {
  int64_t rows, in, out;
  int64_t shadows, chunk;  // chunk = rows / shadows rows use one shadow

  // The last dimension of every tensor is adjacent; *_row is the stride of the first one in elements.
  // bf16 = false: float, true: uint16_t holding bf16.
  bool bf16;
  const void* x;
  const void* dy;
  void* y;
  void* dx;  // nullptr: not wanted
  int64_t x_row, dy_row, y_row, dx_row;
  const void* weight;
  void* dweight;  // nullptr: not wanted
  int64_t weight_row, dweight_row;
  const float* bias;  // (out,) or nullptr
  const float* gain;  // (gain_count,) or nullptr
  int64_t gain_count;
  float* dbias;          // (out,) or nullptr
  float* dgain_partial;  // (column blocks, out): sums of weight * G over each block of columns, or nullptr

  uint64_t key;
  const int64_t* thresholds;  // of the grid, or nullptr
  const int64_t* grid;        // (grid_rows, 4): flip_out, flip_in, M_out, M_in
  int64_t grid_rows;
  int noise;  // Noise
  double amount;
};

// Columns that one task of the backward pass owns. A function of the shape alone, so that sums over blocks come out the
// same for any number of threads.
static inline int64_t linear_column_block(const LinearProblem& p) { return p.in >= 1024 ? 128 : 32; }
static inline int64_t linear_column_blocks(const LinearProblem& p) {
  return (p.in + linear_column_block(p) - 1) / linear_column_block(p);
}

static inline GridDraw grid_draw(const LinearProblem& p, int64_t shadow) {
  if (p.grid == nullptr) return {};
  return draw_matrix_grid(p.thresholds, p.grid, p.grid_rows, p.key, static_cast<uint32_t>(shadow));
}

// False when scratch memory runs out.
WAT_DECLARE_BF16(bool linear_forward(const LinearProblem& p))
WAT_DECLARE_BF16(bool linear_backward(const LinearProblem& p))

}  // namespace wat
