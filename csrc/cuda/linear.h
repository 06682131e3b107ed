// All sizes, strides and addresses of one launch of a linear layer, filled once in linear.cpp and passed by value.
//
//   y (rows, out) = gain * x (rows, in) SW^T + bias,  SW (out, in) = grid(weight) * eps
#pragma once

#include <cstdint>

#include "../common/matrix_grid.h"
#include "noise.h"

namespace wat {

constexpr int kMostRows = 64;

enum DType : int { kFloat = 0, kHalf = 1, kBFloat16 = 2 };

// A matrix on the device: element (r, c) is at data[r * row + c * column].
struct Matrix {
  void* data;
  int64_t row, column;
  bool whole_packets;  // lines can be read and written 16 bytes at a time
};

// A vector of a dtype of its own: bias, gain. data is nullptr where there is none, step 0 where there is one for all.
struct Vector {
  const void* data;
  int64_t step;
  int dtype;
};

struct LinearProblem {
  int64_t rows, in, out;
  int64_t shadows, chunk;  // chunk = rows / shadows rows use one shadow
  int dtype;               // of all matrices

  Matrix x;       // (rows, in)
  Matrix dy;      // (rows, out)
  Matrix weight;  // (out, in)
  Matrix result;  // forward: y (rows, out); data gradient: dx (rows, in); weight gradient: dweight (out, in)
  float* dgain;   // (out,): the forward pass finds <dy, x SW^T> of each output feature instead of y
  float* parts;   // (splits, rows, in): what the blocks of a data gradient that share output features find
  int splits;

  Vector bias, gain;  // (out,)

  const int64_t* key;
  const int64_t* thresholds;  // of the grid, or nullptr
  const int64_t* grid;        // (grid_rows, 4)
  int64_t grid_rows;
  NoiseKind noise;
};

// Launches on the stream of this address. The message of an error, or nullptr.
const char* launch_linear_forward(const LinearProblem& p, int device, uintptr_t stream);
const char* launch_linear_backward_data(const LinearProblem& p, int device, uintptr_t stream);
const char* launch_linear_backward_weight(const LinearProblem& p, int device, uintptr_t stream);

}  // namespace wat
