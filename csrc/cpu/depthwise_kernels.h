// Depthwise convolution, compiled three times: SW as a table of vectors over channels, what positions read, and the
// forward pass; the backward pass is in depthwise_backward.h. Include after target_*.h, see isa.h.
//
// Memory-bound: x and y pass once. A tile is kPixels neighbouring positions of one row x one vector of channels, held in
// registers over all active taps; positions come in classes that read the same taps (axis.h), so padding costs nothing.
#pragma once

#include "depthwise.h"
#include "noise.h"
#include "threads.h"

namespace wat::WAT_ISA {

constexpr int kPixels = Vec::width == 16 ? 8 : 4;  // most positions of a tile
constexpr int64_t kTableFloats = 32768;            // of SW: channels are cut so that it stays cached
constexpr int64_t kMostEntries = 4096;             // as many taps as a kernel may have
constexpr int64_t kMostTable = 16 * kMostEntries;  // the largest kernel still takes 16 channels at a time

// One active tap as a class of positions meets it: where it reads, in elements from the class's source, and its line of
// the table.
struct TapEntry {
  int64_t offset;
  int64_t line;
};

struct DepthwiseScratch {
  float* table;       // [active taps][stride], SW times gain
  float* eps;         // [channels][K]
  float* bias;        // [stride]
  TapEntry* entries;  // [kMostEntries]
  int64_t* counts;    // [kMostEntries]: entries of each class of columns
  int64_t* held;      // which shadow the table holds, -1 for none

  static size_t floats() { return 2 * kMostTable + 4096 + 6 * kMostEntries + 16; }
  explicit DepthwiseScratch(float* s)
      : table(s), eps(table + kMostTable), bias(eps + kMostTable), entries(reinterpret_cast<TapEntry*>(bias + 4096)),
        counts(reinterpret_cast<int64_t*>(entries + kMostEntries)), held(counts + kMostEntries) {}
};

// Channels that are treated together, and the stride of a line of the table.
struct ChannelBlock {
  int64_t first, count, stride;
};

static inline int64_t most_channels(const ConvProblem& p) {
  return min64(4096, max64(16, kTableFloats / p.K / 16 * 16));
}

static inline ChannelBlock channel_block(const ConvProblem& p, int64_t first) {
  const int64_t count = min64(most_channels(p), p.C - first);
  return {first, count, (count + 15) / 16 * 16};
}

static inline float weight_at(const ConvProblem& p, int64_t c, int64_t tap) {
  const int64_t at = c * p.w_o + tap * p.w_t;
  return p.bf16 ? from_bf16(static_cast<const uint16_t*>(p.weight)[at]) : static_cast<const float*>(p.weight)[at];
}

static inline float gain_at(const ConvProblem& p, int64_t c) {
  return p.gain == nullptr ? 1.0f : p.gain[p.gain_count == 1 ? 0 : c];
}

// The noise of all elements of a channel block: they are consecutive.
static inline void block_noise(const ConvProblem& p, const ChannelBlock& block, int64_t shadow, float* eps) {
  noise_fill(noise_stream(p.noise, p.amount, p.key, shadow), static_cast<uint64_t>(block.first * p.K), block.count * p.K,
             eps);
}

static inline void make_table(const ConvProblem& p, const ChannelBlock& block, int64_t shadow, const TapRow& row,
                              const DepthwiseScratch& s) {
  if (*s.held == shadow) return;
  *s.held = shadow;
  if (p.noise != kNoiseNone) block_noise(p, block, shadow, s.eps);
  const int32_t taps = tap_count(row);
  for (int32_t j = 0; j < taps; ++j) {
    const int32_t entries = tap_entries(row, j);
    const int64_t output = tap_output(row, j);
    float* line = s.table + j * block.stride;
    for (int64_t c = 0; c < block.count; ++c) {
      float value = 0;
      for (int32_t e = 0; e < entries; ++e) {
        value += tap_coefficient(row, j, e) * weight_at(p, block.first + c, tap_input(row, j, e));
      }
      if (p.noise != kNoiseNone) value *= s.eps[c * p.K + output];
      line[c] = value * gain_at(p, block.first + c);
    }
    for (int64_t c = block.count; c < block.stride; ++c) line[c] = 0;
  }
  for (int64_t c = 0; c < block.stride; ++c) {
    s.bias[c] = p.bias != nullptr && c < block.count ? p.bias[block.first + c] : 0.0f;
  }
}

// Number of `tap` within a class of positions along one axis, or -1.
static inline int64_t class_tap(const AxisClass& a, int64_t tap) {
  const int64_t from_first = tap - a.tap_first;
  if (from_first < 0 || from_first % a.tap_step != 0 || from_first / a.tap_step >= a.tap_count) return -1;
  return from_first / a.tap_step;
}

static inline int64_t class_entries(const ConvProblem& p, const TapRow& row, const AxisClass& rows,
                                    const AxisClass& columns, int64_t source_h, int64_t source_w, TapEntry* entries) {
  int64_t n = 0;
  for (int32_t j = 0; j < tap_count(row); ++j) {
    const int64_t a = class_tap(rows, tap_output(row, j) / p.kw), b = class_tap(columns, tap_output(row, j) % p.kw);
    if (a < 0 || b < 0) continue;
    entries[n++] = {a * rows.source_per_tap * source_h + b * columns.source_per_tap * source_w, j};
  }
  return n;
}

// A run of positions along one row that read the same taps.
struct Segment {
  const TapEntry* entries;
  int64_t taps;
  int64_t row, column;                // of the first position in the destination
  int64_t step, count;                // destination columns column, column + step, ...
  int64_t source_row, source_column;  // what entry offset 0 of the first position refers to
  int64_t source_step;
};

// f(segment) for all positions of destination rows [low, high), row by row.
template <class F>
WAT_INLINE void for_each_segment(const ConvProblem& p, const DensePlan& plan, const TapRow& row, int64_t low, int64_t high,
                                 int64_t source_h, int64_t source_w, const DepthwiseScratch& s, const F& f) {
  const int64_t at_once = max64(1, kMostEntries / p.K);  // column classes whose entries are held together
  for (int r = 0; r < plan.row_classes; ++r) {
    const AxisClass& rows = plan.rows[r];
    const int64_t begin = low <= rows.first ? 0 : (low - rows.first + rows.step - 1) / rows.step;
    const int64_t end = high <= rows.first ? 0 : min64(rows.count, (high - rows.first + rows.step - 1) / rows.step);
    if (begin >= end) continue;
    for (int64_t first = 0; first < plan.column_classes; first += at_once) {
      const int64_t last = min64(first + at_once, plan.column_classes);
      for (int64_t position = begin; position < end; ++position) {
        for (int64_t c = first; c < last; ++c) {
          const AxisClass& columns = plan.columns[c];
          TapEntry* list = s.entries + (c - first) * p.K;
          if (position == begin) s.counts[c - first] = class_entries(p, row, rows, columns, source_h, source_w, list);
          f(Segment{list, s.counts[c - first], rows.first + position * rows.step, columns.first, columns.step, columns.count,
                    rows.source + position * rows.source_per_position, columns.source, columns.source_per_position});
        }
      }
    }
  }
}

// y of `pixels` neighbouring positions and the channels of a block.
template <int pixels, class T>
static inline void forward_tile(const T* x, int64_t x_step, T* y, int64_t y_step, const Segment& segment,
                                const ChannelBlock& block, const DepthwiseScratch& s) {
  constexpr int W = Vec::width;
  const auto columns = [&](int64_t c, auto... left) {  // `left` is empty for a full vector
    Vec sum[pixels];
    const Vec bias = Vec::load(s.bias + c);
#pragma GCC unroll 8
    for (int j = 0; j < pixels; ++j) sum[j] = bias;
    for (int64_t k = 0; k < segment.taps; ++k) {
      const Vec w = Vec::load(s.table + segment.entries[k].line * block.stride + c);
      const T* from = x + segment.entries[k].offset + c;
#pragma GCC unroll 8
      for (int j = 0; j < pixels; ++j) sum[j] = fma(load_vec(from + j * x_step, left...), w, sum[j]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < pixels; ++j) store_vec(y + j * y_step + c, sum[j], left...);
  };
  int64_t c = 0;
  for (; c + W <= block.count; c += W) columns(c);
  if (c < block.count) columns(c, static_cast<int>(block.count - c));
}

template <class T>
static inline void forward_segment(const T* x, int64_t x_step, T* y, int64_t y_step, const Segment& segment,
                                   const ChannelBlock& block, const DepthwiseScratch& s) {
  int64_t b = 0;
  for (; b + kPixels <= segment.count; b += kPixels) {
    forward_tile<kPixels>(x + b * x_step, x_step, y + b * y_step, y_step, segment, block, s);
  }
  for (; b + 2 <= segment.count; b += 2) {
    forward_tile<2>(x + b * x_step, x_step, y + b * y_step, y_step, segment, block, s);
  }
  if (b < segment.count) forward_tile<1>(x + b * x_step, x_step, y + b * y_step, y_step, segment, block, s);
}

// Output rows [low, high) of image n.
template <class T>
static inline void forward_rows(const ConvProblem& p, const DensePlan& plan, const ChannelBlock& block, int64_t n,
                                int64_t low, int64_t high, const DepthwiseScratch& s) {
  const int64_t shadow = n / p.chunk;
  const TapRow row = forward_taps(p, shadow_row(p, shadow));
  make_table(p, block, shadow, row, s);
  const T* x = static_cast<const T*>(p.x) + n * p.x_n + block.first;
  T* y = static_cast<T*>(p.y) + n * p.y_n + block.first;
  for_each_segment(p, plan, row, low, high, p.x_h, p.x_w, s, [&](const Segment& segment) {
    forward_segment(x + segment.source_row * p.x_h + segment.source_column * p.x_w, segment.source_step * p.x_w,
                    y + segment.row * p.y_h + segment.column * p.y_w, segment.step * p.y_w, segment, block, s);
  });
}

bool depthwise_forward(const ConvProblem& p, const DensePlan& plan) {
  const int64_t bands = plan.workers == 1 ? 1 : max64(1, min64(p.OH, 4 * plan.workers / p.N));
  const int64_t band = (p.OH + bands - 1) / bands, tasks = p.N * bands;
  const int used = static_cast<int>(min64(plan.workers, tasks));
  const size_t floats = DepthwiseScratch::floats();
  float* memory = static_cast<float*>(scratch(used * floats * sizeof(float)));
  if (memory == nullptr) return false;
  for (int64_t first = 0; first < p.C; first += most_channels(p)) {
    const ChannelBlock block = channel_block(p, first);
    for (int worker = 0; worker < used; ++worker) *DepthwiseScratch(memory + worker * floats).held = -1;
    auto task = [&](int worker, int64_t t) {
      const DepthwiseScratch s(memory + worker * floats);
      const int64_t low = t % bands * band, high = min64(low + band, p.OH);
      if (p.bf16) {
        forward_rows<uint16_t>(p, plan, block, t / bands, low, high, s);
      } else {
        forward_rows<float>(p, plan, block, t / bands, low, high, s);
      }
    };
    for_each_task(tasks, used, task);
  }
  return true;
}

}  // namespace wat::WAT_ISA
