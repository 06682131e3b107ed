// The backward pass of depthwise convolution: for each position of x, the positions of dy that saw it are read once and
// serve both gradients, dx += SW * dy and dSW += x * dy. Include after depthwise_kernels.h.
//
// The images (and bands of rows where there are few images) form groups by the shape alone; each group sums dSW for
// itself, and the sums are added in order, so the bits do not depend on the number of threads.
#pragma once

#include "depthwise_kernels.h"

namespace wat::WAT_ISA {

constexpr int64_t kGroups = 32;                 // about as many sums of dSW
constexpr int64_t kPartialFloats = 256 * 1024;  // scratch that holds them

struct DepthwiseGroups {
  int64_t bands, band;          // rows of x and of dy in each
  int64_t dy_band;
  int64_t per_shadow, images;   // groups of images of one shadow, images in each
  int64_t count;                // of all groups

  explicit DepthwiseGroups(const ConvProblem& p) {
    bands = min64((kGroups + p.N - 1) / p.N, p.H);
    band = (p.H + bands - 1) / bands;
    dy_band = (p.OH + bands - 1) / bands;
    const int64_t wanted = max64(1, min64(p.chunk, kGroups / p.shadows));
    images = (p.chunk + wanted - 1) / wanted;
    per_shadow = (p.chunk + images - 1) / images;
    count = p.shadows * per_shadow * bands;
  }
  int64_t shadow(int64_t group) const { return group / (per_shadow * bands); }
};

template <int n>
struct Pixels {
  static constexpr int value = n;
};

template <int pixels, bool want_dx, bool want_dw, class T>
static inline void backward_tile(const T* dy, int64_t dy_step, const T* x, int64_t x_step, T* dx, int64_t dx_step,
                                 float* dsw, const Segment& segment, const ChannelBlock& block,
                                 const DepthwiseScratch& s) {
  constexpr int W = Vec::width;
  const auto columns = [&](int64_t c, auto... left) {
    Vec sum[pixels], in[pixels];
#pragma GCC unroll 8
    for (int j = 0; j < pixels; ++j) {
      sum[j] = Vec::zero();
      if (want_dw) in[j] = load_vec(x + j * x_step + c, left...);
    }
    for (int64_t k = 0; k < segment.taps; ++k) {
      const int64_t line = segment.entries[k].line * block.stride + c;
      const Vec w = Vec::load(s.table + line);
      const T* from = dy + segment.entries[k].offset + c;
      Vec even = Vec::zero(), odd = Vec::zero();  // two chains, half the latency
      if (want_dw) even = Vec::load(dsw + line);
#pragma GCC unroll 8
      for (int j = 0; j < pixels; ++j) {
        const Vec d = load_vec(from + j * dy_step, left...);
        if (want_dx) sum[j] = fma(d, w, sum[j]);
        if (want_dw) (j % 2 == 0 ? even : odd) = fma(d, in[j], j % 2 == 0 ? even : odd);
      }
      if (want_dw) (even + odd).store(dsw + line);
    }
    if (want_dx) {
#pragma GCC unroll 8
      for (int j = 0; j < pixels; ++j) store_vec(dx + j * dx_step + c, sum[j], left...);
    }
  };
  int64_t c = 0;
  for (; c + W <= block.count; c += W) columns(c);
  if (c < block.count) columns(c, static_cast<int>(block.count - c));
}

// Rows [low, high) of image n of x; dsw: [active taps][stride]
template <bool want_dx, bool want_dw, class T>
static inline void backward_rows(const ConvProblem& p, const DensePlan& plan, const TapRow& row, const ChannelBlock& block,
                                 int64_t n, int64_t low, int64_t high, float* dsw, const DepthwiseScratch& s) {
  const T* dy = static_cast<const T*>(p.dy) + n * p.y_n + block.first;
  const T* x = want_dw ? static_cast<const T*>(p.x) + n * p.x_n + block.first : nullptr;
  T* dx = want_dx ? static_cast<T*>(p.dx) + n * p.dx_n + block.first : nullptr;
  for_each_segment(p, plan, row, low, high, p.y_h, p.y_w, s, [&](const Segment& segment) {
    if (!want_dx && segment.taps == 0) return;
    const T* from = dy + segment.source_row * p.y_h + segment.source_column * p.y_w;
    const T* in = want_dw ? x + segment.row * p.x_h + segment.column * p.x_w : nullptr;
    T* to = want_dx ? dx + segment.row * p.dx_h + segment.column * p.dx_w : nullptr;
    const int64_t from_step = segment.source_step * p.y_w;
    const int64_t in_step = want_dw ? segment.step * p.x_w : 0, to_step = want_dx ? segment.step * p.dx_w : 0;
    int64_t b = 0;
    const auto tiles = [&](auto size) {
      constexpr int pixels = decltype(size)::value;
      for (; b + pixels <= segment.count; b += pixels) {
        backward_tile<pixels, want_dx, want_dw>(from + b * from_step, from_step, in + b * in_step, in_step,
                                                to + b * to_step, to_step, dsw, segment, block, s);
      }
    };
    tiles(Pixels<kPixels>());
    tiles(Pixels<2>());
    tiles(Pixels<1>());
  });
}

// Sums of dy over rows [low, high) of image n, each row added up by itself.
template <class T>
static inline void bias_rows(const ConvProblem& p, const ChannelBlock& block, int64_t n, int64_t low, int64_t high,
                             float* dbias) {
  constexpr int W = Vec::width;
  for (int64_t h = low; h < high; ++h) {
    const T* row = static_cast<const T*>(p.dy) + n * p.y_n + h * p.y_h + block.first;
    int64_t c = 0;
    for (; c + W <= block.count; c += W) {
      Vec line = Vec::zero();
      for (int64_t w = 0; w < p.OW; ++w) line = line + load_vec(row + w * p.y_w + c);
      (Vec::load(dbias + c) + line).store(dbias + c);
    }
    for (; c < block.count; ++c) {
      float line = 0;
      for (int64_t w = 0; w < p.OW; ++w) line += load_one(row + w * p.y_w + c);
      dbias[c] += line;
    }
  }
}

template <class T>
static inline void backward_group(const ConvProblem& p, const DensePlan& plan, const DepthwiseGroups& groups,
                                  const ChannelBlock& block, int64_t group, float* partial, const DepthwiseScratch& s) {
  const int64_t shadow = groups.shadow(group), band = group % groups.bands;
  const TapRow row = forward_taps(p, shadow_row(p, shadow));
  make_table(p, block, shadow, row, s);
  const int64_t first = shadow * p.chunk + group / groups.bands % groups.per_shadow * groups.images;
  const int64_t last = min64(first + groups.images, (shadow + 1) * p.chunk);
  const int64_t low = min64(p.H, band * groups.band), high = min64(p.H, low + groups.band);
  const int64_t dy_low = min64(p.OH, band * groups.dy_band), dy_high = min64(p.OH, dy_low + groups.dy_band);
  memset(partial, 0, (p.K + 1) * block.stride * sizeof(float));
  for (int64_t n = first; n < last; ++n) {
    if (p.dx != nullptr && p.dweight != nullptr) {
      backward_rows<true, true, T>(p, plan, row, block, n, low, high, partial, s);
    } else if (p.dx != nullptr) {
      backward_rows<true, false, T>(p, plan, row, block, n, low, high, partial, s);
    } else if (p.dweight != nullptr) {
      backward_rows<false, true, T>(p, plan, row, block, n, low, high, partial, s);
    }
    if (p.dbias != nullptr) bias_rows<T>(p, block, n, dy_low, dy_high, partial + p.K * block.stride);
  }
}

// M^T (dSW * eps) of one shadow, added to total, [channels][K] in the order of the weight's taps.
static inline void add_shadow(const ConvProblem& p, const ChannelBlock& block, int64_t shadow, const float* dsw,
                              float* total, float* eps) {
  const TapRow row = forward_taps(p, shadow_row(p, shadow));
  if (p.noise != kNoiseNone) block_noise(p, block, shadow, eps);
  for (int32_t j = 0; j < tap_count(row); ++j) {
    const int32_t entries = tap_entries(row, j);
    const int64_t output = tap_output(row, j);
    for (int64_t c = 0; c < block.count; ++c) {
      const float g = dsw[j * block.stride + c] * (p.noise != kNoiseNone ? eps[c * p.K + output] : 1.0f);
      for (int32_t e = 0; e < entries; ++e) total[c * p.K + tap_input(row, j, e)] += tap_coefficient(row, j, e) * g;
    }
  }
}

static inline void store_gradients(const ConvProblem& p, const ChannelBlock& block, const float* total,
                                   const float* dbias, double* dgain) {
  for (int64_t c = 0; c < block.count; ++c) {
    const int64_t channel = block.first + c;
    double dot = 0;
    for (int64_t t = 0; t < p.K; ++t) {
      const float g = total[c * p.K + t], value = gain_at(p, channel) * g;
      dot += static_cast<double>(weight_at(p, channel, t)) * g;
      const int64_t at = channel * p.dw_o + t * p.dw_t;
      if (p.bf16) {
        static_cast<uint16_t*>(p.dweight)[at] = to_bf16(value);
      } else {
        static_cast<float*>(p.dweight)[at] = value;
      }
    }
    if (p.dbias != nullptr) p.dbias[channel] = dbias[c];
    if (p.dgain != nullptr && p.gain_count != 1) p.dgain[channel] = static_cast<float>(dot);
    *dgain += dot;
  }
}

bool depthwise_backward(const ConvProblem& p, const DensePlan& plan) {
  const DepthwiseGroups groups(p);
  const size_t floats = DepthwiseScratch::floats();
  const int used = static_cast<int>(min64(plan.workers, groups.count));
  const int64_t reduction = 3 * kMostTable + 4096;  // shadow sums, total, eps; the last line of the sums is dbias
  float* memory = static_cast<float*>(scratch((used * floats + reduction + kPartialFloats) * sizeof(float)));
  if (memory == nullptr) return false;
  float* sums = memory + used * floats;
  float* total = sums + kMostTable + 4096;
  float* eps = total + kMostTable;
  float* partial = eps + kMostTable;
  double dgain = 0;

  for (int64_t first = 0; first < p.C; first += most_channels(p)) {
    const ChannelBlock block = channel_block(p, first);
    const int64_t size = (p.K + 1) * block.stride;
    const int64_t at_once = max64(1, kPartialFloats / size);
    for (int worker = 0; worker < used; ++worker) *DepthwiseScratch(memory + worker * floats).held = -1;
    memset(total, 0, block.count * p.K * sizeof(float));
    memset(sums, 0, size * sizeof(float));
    for (int64_t begin = 0; begin < groups.count; begin += at_once) {
      const int64_t end = min64(begin + at_once, groups.count);
      auto task = [&](int worker, int64_t t) {
        const DepthwiseScratch s(memory + worker * floats);
        if (p.bf16) {
          backward_group<uint16_t>(p, plan, groups, block, begin + t, partial + t * size, s);
        } else {
          backward_group<float>(p, plan, groups, block, begin + t, partial + t * size, s);
        }
      };
      for_each_task(end - begin, used, task);
      for (int64_t group = begin; group < end && p.dweight != nullptr; ++group) {
        const float* from = partial + (group - begin) * size;
        for (int64_t i = 0; i < size; ++i) sums[i] += from[i];
        if (group + 1 < groups.count && groups.shadow(group + 1) == groups.shadow(group)) continue;
        add_shadow(p, block, groups.shadow(group), sums, total, eps);
        memset(sums, 0, p.K * block.stride * sizeof(float));  // dbias goes on
      }
    }
    if (p.dweight != nullptr) store_gradients(p, block, total, sums + p.K * block.stride, &dgain);
  }
  if (p.dgain != nullptr && p.gain_count == 1) p.dgain[0] = static_cast<float>(dgain);
  return true;
}

}  // namespace wat::WAT_ISA
