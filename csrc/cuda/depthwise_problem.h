// Everything that one depthwise launch is told, filled once in depthwise_plan.h and passed by const reference.
//
// A launch makes a *result* from a *source*: y from x, or dx from dy. Both are gathers, and strides and dilation vanish
// from them by sorting positions of the result into classes along each axis. All positions of a class meet the same taps:
//
//   result position   q + result_step * j             for class q, j = 0, 1, ...
//   source position   base[q] + source_step * (S * j + a)
//   tap               first_tap[q] + tap_step * a     for a = 0 ... count[q] - 1
//
// so each class is a convolution without dilation, of stride S (1 for dx), with count[q] taps. The weight gradient walks y
// with the geometry of the forward pass.
#pragma once

#include <cstdint>

#include "../common/tap_table.h"
#include "noise.h"

namespace wat {

// The dtype of an array.
enum class Scalar : int { kFloat, kHalf, kBFloat16 };

constexpr int kMostClasses = 8;      // along one axis; more take the generic kernels
constexpr int kDepthwiseThreads = 128;

// n / divisor by a multiplication, for n * divisor < 2^32.
struct FastDivide {
  uint32_t divisor, multiplier;
};

struct DepthwiseAxis {
  int32_t stride, pad, dilation, taps;  // of the convolution
  int32_t classes;                      // = result_step
  int32_t source_step, S, tap_step;
  int32_t base[kMostClasses], count[kMostClasses], first_tap[kMostClasses];
  int32_t lowest;                       // the smallest base
};

// One image tensor, (N, C, height, width), and how a tile of it lies in shared memory.
struct DepthwiseImage {
  char* data;
  int64_t stride_n, stride_c, stride_h, stride_w;  // in elements
  int32_t height, width;
  bool aligned;          // channels_last: every run of channels begins at a multiple of 16 bytes
  int32_t rows, columns; // of a staged tile
  int32_t pitch;         // bytes from pixel to pixel (channels_last) or from plane to plane
  bool whole;            // contiguous: a tile is whole planes, one run of memory
  int32_t chunks;        // copies of 16 bytes (or of one element) that a run takes at most
  FastDivide by_chunks, by_columns;
  int32_t bytes;         // of a staged tile
};

struct DepthwiseProblem {
  Scalar scalar;        // of the images and the weight
  int32_t element;      // its bytes
  bool channels_last;
  bool backward;        // the data gradient; decides which formula the generic kernels use
  int64_t N, C;
  DepthwiseImage source, result;  // of the weight gradient: x and dy
  DepthwiseAxis vertical, horizontal;

  // Work: channels come in blocks of `channels`, a block of threads has one of them and a range of the N * tiles tiles.
  int32_t channels, channel_blocks, pairs, strips_at_once;
  int32_t tile_rows, tile_columns, tiles_h, tiles_w;  // of the result; multiples of classes times a strip
  int32_t groups_h, groups_w;                         // strips of a class in a tile
  FastDivide by_groups_w, by_groups_h, by_classes_w;
  int32_t parts;                                      // ranges of tiles
  int32_t parts_in_group;                             // of the first level of the weight gradient's sum
  int64_t work;                                       // N * tiles

  // The weight gradient
  float* partial;       // (parts, C, K + 1), the last one for the bias
  int32_t* arrived;     // (channel_blocks, groups of parts + 1), zero before and after
  char* dweight;        // strides as the weight's
  char* dbias;          // (C,) in the images' dtype, or nullptr
  float* dgain;         // (C,) or nullptr

  // Shared memory, offsets in bytes
  int32_t at_table, at_bias, at_masks, at_active, at_source, at_result, at_sums, shared;

  // Weight and randomness
  int32_t K, kernel_w;
  const char* weight;   // element (c, tap) at c * weight_c + tap * weight_t
  int64_t weight_c, weight_t;
  int64_t dweight_c, dweight_t;
  const char *bias, *gain;
  Scalar bias_scalar, gain_scalar;
  bool gain_per_channel;
  const int64_t* key;   // in device memory
  const int64_t* thresholds;
  int32_t table_rows;
  const int32_t *taps, *taps_t;
  int64_t line, line_t;
  int32_t width, width_t;  // E
  int64_t chunk;           // images of a shadow
  NoiseKind noise;
};

// Which of the compiled kernels runs: 0 for the generic ones.
struct DepthwiseChoice {
  int taps, stride;
};

}  // namespace wat
