// One spatial axis of a convolution, cut into classes of positions that read the same kernel taps.
//
// A register tile takes its pixels from one (row class, column class) pair, so all of them visit the same taps at the
// same offsets: no tap that falls on padding is ever multiplied, and no pointer table or page of zeros is needed. With
// stride > 1 the data gradient's classes are the residues of the stride, so only (pixel, tap) pairs that divide are met.
#pragma once

#include <cstdint>
#include <vector>

namespace wat {

// Positions first, first + step, ... (count of them) of the destination. They read taps tap_first, tap_first + tap_step,
// ... (tap_count of them); tap number a of position number b reads source index
//   source + a * source_per_tap + b * source_per_position.
struct AxisClass {
  int64_t first, step, count;
  int64_t tap_first, tap_step, tap_count;
  int64_t source, source_per_tap, source_per_position;
};

struct Axis {
  int64_t input, output, kernel, stride, pad, dilation;
};

// Destination: output positions; source: input positions.
std::vector<AxisClass> forward_classes(const Axis& axis);
// Destination: input positions; source: output positions. Classes without taps are included: their dx is zero.
std::vector<AxisClass> gradient_classes(const Axis& axis);

}  // namespace wat
