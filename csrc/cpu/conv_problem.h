// All sizes, strides and pointers of one convolution call, filled once in conv.cpp and passed by const reference.
// Data only: the ISA translation units include this.
#pragma once

#include <cstdint>

#include "../common/tap_table.h"

namespace wat {

struct ConvProblem {
  // x (N, C, H, W), y (N, O, OH, OW), weight (O, I, kh, kw) with I = C / groups, or transposed (C, I, kh, kw) with
  // I = O / groups. A transposed convolution is the data gradient of the one that takes y to x: so are its classes
  // (axis.h), its stride, padding and dilation.
  int64_t N, C, H, W, O, OH, OW;
  int64_t I;                  // columns of the weight: input channels a group, or output channels if transposed
  int64_t og;                 // rows of the weight in a group: output channels, or input channels if transposed
  int64_t kh, kw, K;          // K = kh * kw
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left;  // bottom and right are in OH and OW
  int64_t dilation_h, dilation_w;
  int64_t groups;
  bool transposed;

  int64_t shadows, chunk;     // chunk = N / shadows images use one shadow

  // Tensors. Channels of x, y, dx and dy are always adjacent (channel stride 1); the other strides are free, counted
  // in elements. bf16 = false: float, true: uint16_t holding bf16. Which pointers are set depends on the pass.
  bool bf16;
  const void* x;              // forward, weight gradient
  const void* dy;             // backward
  void* y;                    // forward
  void* dx;                   // data gradient
  int64_t x_n, x_h, x_w;      // strides of x or dx, whichever the pass touches (`dx_*` where it touches both)
  int64_t dx_n, dx_h, dx_w;
  int64_t y_n, y_h, y_w;      // strides of y or dy

  const void* weight;         // PW, element (o, i, t) at o * w_o + i * w_i + t * w_t
  int64_t w_o, w_i, w_t;
  void* dweight;              // strides dw_*
  int64_t dw_o, dw_i, dw_t;
  const float* bias;          // (O,) or nullptr, always fp32
  const float* gain;          // (gain_count,) or nullptr, always fp32
  int64_t gain_count;         // 0 without gain, 1, or O
  float* dbias;               // (O,) fp32 or nullptr
  float* dgain;               // (gain_count,) fp32 or nullptr

  // Randomness
  uint64_t key;
  const int64_t* thresholds;  // (rows,)
  int64_t rows;
  const int32_t* taps;        // (rows, ell_length)
  const int32_t* taps_t;      // (rows, ell_t_length)
  int64_t ell_length, ell_t_length;
  int noise;                  // Noise
  double amount;              // as Python holds it: the DropConnect threshold is rounded from it
};

// Row of the table that shadow s draws.
static inline int64_t shadow_row(const ConvProblem& p, int64_t s) {
  return draw_row(p.thresholds, p.rows, p.key, static_cast<uint32_t>(s));
}

static inline TapRow forward_taps(const ConvProblem& p, int64_t row) {
  return {p.taps + row * p.ell_length, static_cast<int32_t>(p.K), static_cast<int32_t>(ell_width(p.ell_length, p.K))};
}

static inline TapRow transposed_taps(const ConvProblem& p, int64_t row) {
  return {p.taps_t + row * p.ell_t_length, static_cast<int32_t>(p.K),
          static_cast<int32_t>(ell_width(p.ell_t_length, p.K))};
}

}  // namespace wat
