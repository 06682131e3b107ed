// How a depthwise launch is cut up, on the host: classes of positions, tiles, shared memory, blocks.
//
// The caller has filled: scalar, element, channels_last, backward, N, C, the data, strides, sizes and `aligned` of both
// images, stride, pad, dilation and taps of both axes, K and kernel_w.
#pragma once

#include <algorithm>
#include <numeric>

#include "depthwise_gather.h"

namespace wat {

constexpr int32_t kWantedShared = 56 * 1024;  // four blocks on a multiprocessor of 228 KiB
constexpr int32_t kMostShared = 96 * 1024;    // what a block may have on every architecture from 8.0 on

inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
inline int32_t parts_of(int64_t n, int64_t of) { return static_cast<int32_t>((n + of - 1) / of); }

// A divisor is at most 2^15 here and what is divided below 2^17: the product is below 2^32.
inline FastDivide fast_divide(int64_t divisor) {
  const uint32_t d = static_cast<uint32_t>(divisor);
  return {d, d == 1 ? 0 : static_cast<uint32_t>(((uint64_t{1} << 32) + d - 1) / d)};
}

// Fills the classes of an axis. False where there are more than kernels hold.
inline bool plan_axis(DepthwiseAxis& axis, bool backward) {
  const int32_t s = axis.stride, d = axis.dilation, common = std::gcd(s, d);
  axis.classes = backward ? s / common * d : d / common;
  axis.source_step = backward ? d / common : d;
  axis.S = backward ? 1 : s / common;
  axis.tap_step = backward ? -(s / common) : 1;
  if (axis.classes > kMostClasses) return false;
  axis.lowest = INT32_MAX;
  for (int32_t q = 0; q < axis.classes; ++q) {
    axis.base[q] = q * s - axis.pad, axis.count[q] = axis.taps, axis.first_tap[q] = 0;
    if (backward) {
      int32_t k = 0;  // the first tap that reaches these positions: the others follow every s / common
      while (k < s / common && (q + axis.pad - static_cast<int64_t>(k) * d) % s != 0) ++k;
      const bool reached = k < s / common && k < axis.taps;
      axis.count[q] = reached ? (axis.taps - 1 - k) / (s / common) + 1 : 0;
      axis.first_tap[q] = reached ? k + s / common * (axis.count[q] - 1) : 0;
      axis.base[q] = reached ? (q + axis.pad - axis.first_tap[q] * d) / s : 0;
      if (!reached) continue;
    }
    axis.lowest = std::min(axis.lowest, axis.base[q]);
  }
  if (axis.lowest == INT32_MAX) axis.lowest = 0;
  for (int32_t q = 0; q < axis.classes; ++q) axis.base[q] = axis.count[q] == 0 ? axis.lowest : axis.base[q];
  return true;
}

// Positions of the source that `positions` of every class read.
inline int32_t reach(const DepthwiseAxis& axis, int32_t positions) {
  int32_t highest = axis.lowest;
  for (int32_t q = 0; q < axis.classes; ++q) {
    highest = std::max(highest, axis.base[q] + axis.source_step * std::max(0, axis.count[q] - 1));
  }
  return highest - axis.lowest + axis.source_step * axis.S * (positions - 1) + 1;
}

inline int32_t most_taps(const DepthwiseAxis& axis) { return *std::max_element(axis.count, axis.count + axis.classes); }

// Which kernel can run this: 0 taps for the generic ones.
inline DepthwiseChoice plan_classes(DepthwiseProblem& p) {
  const bool few = plan_axis(p.vertical, p.backward) & plan_axis(p.horizontal, p.backward);
  if (!few) return {0, 0};
  const int32_t taps = std::max(most_taps(p.vertical), most_taps(p.horizontal)), S = p.vertical.S;
  // along an axis of one position the stride does not matter, but then it costs nothing to go the generic way either
  if (taps > 7 || S > 2 || S != p.horizontal.S) return {0, 0};
  if (!p.channels_last && std::max(p.source.width, p.result.width) > (1 << 15)) return {0, 0};
  return {taps <= 3 ? 3 : taps <= 5 ? 5 : 7, S};
}

// How a tile of `rows` x `columns` positions of an image lies in shared memory.
inline void plan_image(const DepthwiseProblem& p, DepthwiseImage& image, int32_t rows, int32_t columns, bool whole) {
  image.rows = rows, image.columns = columns, image.whole = whole;
  if (p.channels_last) {
    const int32_t run = p.channels * p.element;
    image.pitch = static_cast<int32_t>(up(run, 16));
    if (image.pitch % 128 == 64) image.pitch += 16;  // two strips side by side then take different banks
    image.chunks = image.aligned ? image.pitch / 16 : p.channels;
    if (image.aligned) image.chunks = parts_of(run, 16);
    image.bytes = rows * columns * image.pitch;
  } else {
    const int64_t plane = static_cast<int64_t>(image.height) * image.width * p.element;
    const int64_t band = std::min<int64_t>(rows, image.height) * image.width * p.element;
    const int64_t run = whole ? plane * p.channels : band;
    image.pitch = static_cast<int32_t>(whole ? plane : up(band, 16) + plane % 16);
    image.chunks = static_cast<int32_t>(run / 16) + 2;
    image.bytes = static_cast<int32_t>(up(whole ? run : int64_t{image.pitch} * p.channels, 16)) + 32;
  }
  image.bytes = static_cast<int32_t>(up(image.bytes, 128));
  image.by_chunks = fast_divide(image.chunks);
  image.by_columns = fast_divide(std::max(1, columns));
}

// Where everything lies in shared memory. `weight`: the weight gradient, which stages both images twice and keeps sums.
inline void plan_shared(DepthwiseProblem& p, const DepthwiseChoice& choice, bool weight) {
  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t begin = at;
    at = up(at + bytes, 128);
    return static_cast<int32_t>(begin);
  };
  p.at_table = take(weight ? 0 : int64_t{4} * p.K * p.channels);
  p.at_bias = take(4 * p.channels);
  p.at_masks = take(choice.taps == 0 ? 0 : 8 * p.vertical.classes * p.horizontal.classes);
  p.at_active = take(4 * (2 + p.K));
  p.at_source = take(choice.taps == 0 ? 0 : int64_t{2} * p.source.bytes);
  p.at_result = take(choice.taps == 0 ? 0 : int64_t{weight ? 2 : 1} * p.result.bytes);
  const int64_t threads = int64_t{2} * std::max(1, choice.taps) * kDepthwiseThreads;  // the bias takes a kernel row of one
  p.at_sums = take(!weight ? 0 : 4 * ((2 * p.K + 1) * int64_t{p.channels} + (choice.taps == 0 ? 0 : threads)));
  p.shared = static_cast<int32_t>(std::min<int64_t>(at, INT32_MAX));
}

inline int32_t strip_rows(const DepthwiseChoice& choice) { return choice.stride == 1 ? kStripRows<1> : kStripRows<2>; }

// Tiles of at most `rows` x `columns` positions of the result: whole strips of every class, and as equal as they can be.
inline void plan_tile(DepthwiseProblem& p, const DepthwiseChoice& choice, int64_t rows, int64_t columns, bool weight) {
  const int32_t unit_h = p.vertical.classes * strip_rows(choice), unit_w = p.horizontal.classes * kStripColumns;
  const auto cut = [](int32_t size, int64_t most, int32_t unit, int32_t* tile, int32_t* tiles) {
    *tiles = most >= size ? 1 : parts_of(size, std::max<int64_t>(unit, most / unit * unit));
    *tile = static_cast<int32_t>(up(parts_of(size, *tiles), unit));
    *tiles = parts_of(size, *tile);
  };
  cut(p.result.height, rows, unit_h, &p.tile_rows, &p.tiles_h);
  cut(p.result.width, columns, unit_w, &p.tile_columns, &p.tiles_w);
  const int32_t rows_of_class = p.tile_rows / p.vertical.classes, columns_of_class = p.tile_columns / p.horizontal.classes;
  p.groups_h = rows_of_class / strip_rows(choice), p.groups_w = columns_of_class / kStripColumns;
  p.by_groups_h = fast_divide(p.groups_h), p.by_groups_w = fast_divide(p.groups_w);
  p.by_classes_w = fast_divide(p.horizontal.classes);
  const bool whole = !p.channels_last && p.tiles_h == 1;
  plan_image(p, p.source, reach(p.vertical, rows_of_class), reach(p.horizontal, columns_of_class), whole);
  plan_image(p, p.result, p.tile_rows, p.tile_columns, whole);
  plan_shared(p, choice, weight);
}

inline void plan_channels(DepthwiseProblem& p, int64_t channels) {
  p.channels = static_cast<int32_t>(channels);
  p.channel_blocks = parts_of(p.C, channels);
  p.pairs = std::max(1, p.channels / 2);
  p.strips_at_once = kDepthwiseThreads / p.pairs;
}

// The tallest tile of at most `columns` that fits `shared` bytes. False where none does.
inline bool plan_tallest(DepthwiseProblem& p, const DepthwiseChoice& choice, int64_t columns, bool weight, int32_t shared) {
  for (int64_t rows = p.result.height;; rows = std::min<int64_t>(rows - 1, p.tile_rows - 1)) {
    plan_tile(p, choice, rows, columns, weight);
    if (p.shared <= shared) return true;
    if (p.tile_rows <= p.vertical.classes * strip_rows(choice)) return false;
  }
}

// Channels and tile of a channels_last image: runs of 128 bytes where halos then cost less than half of what is read anyway,
// else of 128 or 64, whichever copies less, and of 32 only where nothing else fits. Tiles are wide or narrow, whichever has
// the smaller halos.
inline bool plan_channels_last(DepthwiseProblem& p, const DepthwiseChoice& choice, bool weight) {
  double least = 1e30;
  DepthwiseProblem best = p;
  for (int32_t run = 128; run >= 32 && least > 1.5; run /= 2) {
    if (run == 32 && least < 1e30) break;
    const int64_t most = run / p.element;
    plan_channels(p, up(parts_of(p.C, parts_of(p.C, most)), 8));
    for (const int64_t columns : {16, 8}) {
      if (!plan_tallest(p, choice, columns, weight, kWantedShared)) continue;
      const double copied = static_cast<double>(p.source.rows) * p.source.columns * p.tiles_h * p.tiles_w;
      const double ratio = copied / (static_cast<double>(p.source.height) * p.source.width);
      if (ratio < least) least = ratio, best = p;
    }
  }
  if (least < 1e30) {
    p = best;
    return true;
  }
  return plan_tallest(p, choice, 8, weight, kMostShared);
}

// Channels and tile for the kernels of `choice`; false where their tiles do not fit.
inline bool plan_tiles(DepthwiseProblem& p, const DepthwiseChoice& choice, bool weight) {
  if (p.channels_last) return plan_channels_last(p, choice, weight);
  // whole planes, as many as fill about 8 KiB; or bands of rows of two planes
  const int64_t plane = int64_t{p.element} * std::max<int64_t>(1, std::max(int64_t{p.source.height} * p.source.width,
                                                                         int64_t{p.result.height} * p.result.width));
  if (plane <= 8192) {
    plan_channels(p, std::min<int64_t>({up(p.C, 2), std::max<int64_t>(2, 8192 / plane / 2 * 2), 2 * kDepthwiseThreads}));
    plan_tile(p, choice, p.result.height, p.result.width, weight);
    if (p.shared <= kWantedShared) return true;
  }
  plan_channels(p, 2);
  return plan_tallest(p, choice, p.result.width, weight, kWantedShared) ||
         plan_tallest(p, choice, p.result.width, weight, kMostShared);
}

// Fills the rest. The number of blocks follows the device, and is bounded by it where parts are kept (weight gradient).
inline DepthwiseChoice plan_depthwise(DepthwiseProblem& p, bool weight, int64_t multiprocessors) {
  DepthwiseChoice choice = plan_classes(p);
  if (choice.taps != 0 && !plan_tiles(p, choice, weight)) choice = {0, 0};
  if (choice.taps == 0) {
    plan_channels(p, std::max<int64_t>(1, std::min<int64_t>({p.C, 32, 4096 / p.K})));
    p.tiles_h = p.tiles_w = 1;
    plan_shared(p, choice, weight);
  }
  p.work = p.N * p.tiles_h * p.tiles_w;
  const int64_t blocks = multiprocessors * (weight ? 3 : 12);
  p.parts = static_cast<int32_t>(std::max<int64_t>(1, std::min(p.work, blocks / p.channel_blocks)));
  p.parts_in_group = 1;
  while (p.parts_in_group * p.parts_in_group < p.parts) ++p.parts_in_group;
  return choice;
}

}  // namespace wat
