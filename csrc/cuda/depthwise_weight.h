// dPW, dbias and the gradient of the gain from x and dy, in one launch and always the same bits.
//
// A block walks its range of tiles as the gather kernels do, with x and dy staged together. A thread keeps the sums of all
// taps of its two channels in registers. Where the shadow changes, and at the end, the block adds up its threads in their
// order, multiplies by the noise and mixes through the transposed row: what it passes on is its part of the gradient of PW
// before the gain, (K + 1) numbers a channel, the last one for the bias. The parts are added up in two levels of about
// sqrt(parts) each, by the block that finds itself the last to arrive there; no block waits for another.
#pragma once

#include "depthwise_gather.h"

namespace wat {

template <int kTaps>
struct WeightSums {
  float tap[kTaps * kTaps][2];
  float bias[2];
};

// Memory of the sums: dSW of the present shadow [K][channels], gradients of PW and bias [K + 1][channels], and what threads
// leave for each other.
struct WeightMemory {
  float *dsw, *gradient, *threads;
};

WAT_DEVICE WeightMemory weight_memory(const DepthwiseProblem& p, char* shared) {
  float* const at = reinterpret_cast<float*>(shared + p.at_sums);
  return {at, at + p.K * p.channels, at + (2 * p.K + 1) * p.channels};
}

// dPW before the gain += M^T (dSW * eps), where dSW is complete in shared memory. All threads wait before and after.
WAT_DEVICE void add_shadow(const DepthwiseProblem& p, const DepthwiseBlock& block, uint32_t shadow, char* shared, int thread) {
  const WeightMemory memory = weight_memory(p, shared);
  const TapRow row{p.taps_t + active_taps(p, shared)[0] * p.line_t, p.K, p.width_t};
  const uint64_t key = static_cast<uint64_t>(*p.key);
  for (int32_t i = thread; i < tap_count(row) * block.channels; i += kDepthwiseThreads) {
    const int32_t j = i / block.channels, c = i - j * block.channels;
    float total = 0;
    for (int32_t e = 0; e < p.width_t; ++e) {
      const float coefficient = tap_coefficient(row, j, e);
      if (coefficient == 0.0f) break;
      const int32_t tap = tap_input(row, j, e);
      total += coefficient * memory.dsw[tap * p.channels + c] * noise_factor(p, key, shadow, block.first_channel + c, tap);
    }
    memory.gradient[tap_output(row, j) * p.channels + c] += total;
  }
}

// Whether this block is the last of `count` to arrive at `counter`, which it leaves at zero.
WAT_DEVICE bool is_last(const DepthwiseProblem& p, int32_t* counter, int32_t count, char* shared) {
  publish();
  __syncthreads();
  int32_t* const last = active_taps(p, shared);
  if (threadIdx.x == 0) {
    *last = arrive(counter) == count - 1;
    if (*last) *counter = 0;
  }
  __syncthreads();
  after_arrival();
  return *last;
}

// Adds up the parts of all blocks of these channels and stores the gradients. The block's own part is in shared memory.
WAT_DEVICE void finish_weight(const DepthwiseProblem& p, const DepthwiseBlock& block, char* shared) {
  const int thread = threadIdx.x;
  const WeightMemory memory = weight_memory(p, shared);
  const int32_t lines = p.K + 1, size = lines * block.channels, groups = (p.parts + p.parts_in_group - 1) / p.parts_in_group;
  int32_t* const counters = p.arrived + block.channel_block * (groups + 1);
  const int32_t group = block.part / p.parts_in_group, group_begin = group * p.parts_in_group;
  const int32_t members = p.parts - group_begin < p.parts_in_group ? p.parts - group_begin : p.parts_in_group;
  const int64_t step = p.C * lines;
  float* const parts = p.partial + block.first_channel * lines;
  for (int level = 0; level < 2; ++level) {
    const int32_t own = level == 0 ? block.part : group_begin;
    for (int32_t i = thread; i < size; i += kDepthwiseThreads) {
      const int32_t c = i / lines, t = i - c * lines;
      parts[own * step + i] = memory.gradient[t * p.channels + c];
    }
    const int32_t count = level == 0 ? members : groups, stride = level == 0 ? 1 : p.parts_in_group;
    if (!is_last(p, level == 0 ? counters + 1 + group : counters, count, shared)) return;
    const float* const from = parts + (level == 0 ? group_begin : 0) * step;
    for (int32_t i = thread; i < size; i += kDepthwiseThreads) {
      const int32_t c = i / lines, t = i - c * lines;
      float total = 0;
      WAT_UNROLL_BY(8)
      for (int32_t k = 0; k < count; ++k) total += read_fresh(from + k * stride * step + i);
      memory.gradient[t * p.channels + c] = total;
    }
    __syncthreads();
  }
  for (int32_t c = thread; c < block.channels; c += kDepthwiseThreads) {
    const int64_t channel = block.first_channel + c;
    const float gain = gain_of(p, channel);
    float dot = 0;
    for (int32_t t = 0; t < p.K; ++t) {
      const float g = memory.gradient[t * p.channels + c];
      if (p.dgain != nullptr) dot += weight_of(p, channel, t) * g;
      if (p.dweight != nullptr) write_number(p.dweight, channel * p.dweight_c + t * p.dweight_t, p.scalar, gain * g);
    }
    if (p.dgain != nullptr) p.dgain[channel] = dot;
    if (p.dbias != nullptr) write_number(p.dbias, channel, p.scalar, memory.gradient[p.K * p.channels + c]);
  }
}

WAT_DEVICE void clear_gradient(const DepthwiseProblem& p, char* shared, int thread) {
  const WeightMemory memory = weight_memory(p, shared);
  for (int32_t i = thread; i < (p.K + 1) * p.channels; i += kDepthwiseThreads) memory.gradient[i] = 0.0f;
}

template <int kElement, bool kLast, int kTaps, int S>
WAT_DEVICE void weight_strip(const DepthwiseProblem& p, const DepthwiseTile& result,
                             const TileReader<kElement, kLast>& x, const TileReader<kElement, kLast>& dy, char* shared,
                             int32_t number, WeightSums<kTaps>& sums) {
  constexpr int kRows = kStripRows<S>;
  const DepthwiseStrip strip = strip_of<S>(p, number);
  if (result.row + strip.row >= p.result.height || result.column + strip.column >= p.result.width) return;
  float g[kRows][kStripColumns][2];
  WAT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    dy.read(strip.row + r * p.vertical.classes, strip.column, p.horizontal.classes, g[r]);
    WAT_UNROLL
    for (int j = 0; j < kStripColumns; ++j) sums.bias[0] += g[r][j][0], sums.bias[1] += g[r][j][1];
  }
  for_each_active_tap<kElement, kLast, kTaps, S>(
      x, mask_of<kTaps>(p, shared, strip.qh, strip.qw), strip, p.vertical.source_step, p.horizontal.source_step,
      [&](int a, int b, const auto& rows) {
        float first = sums.tap[a * kTaps + b][0], second = sums.tap[a * kTaps + b][1];
        WAT_UNROLL
        for (int r = 0; r < kRows; ++r) {
          WAT_UNROLL
          for (int j = 0; j < kStripColumns; ++j) {
            first += g[r][j][0] * rows[r * S + a][j * S + b][0];
            second += g[r][j][1] * rows[r * S + a][j * S + b][1];
          }
        }
        sums.tap[a * kTaps + b][0] = first, sums.tap[a * kTaps + b][1] = second;
      });
}

// Moves the sums of all threads into dSW and the gradient of the bias, in the order of the threads.
template <bool kLast, int kTaps>
WAT_DEVICE void flush(const DepthwiseProblem& p, WeightSums<kTaps>& sums, char* shared) {
  constexpr int T = kDepthwiseThreads;
  const int thread = threadIdx.x;
  const WeightMemory memory = weight_memory(p, shared);
  // what threads leave: [tap of a kernel row][which channel of the pair][thread]
  const auto add_up = [&](int32_t b, int32_t c) {
    const float* const from = memory.threads + (2 * b + (c & 1)) * T + (kLast ? c / 2 : c / 2 * p.strips_at_once);
    float total = 0;
    for (int32_t g = 0; g < p.strips_at_once; ++g) total += from[kLast ? g * p.pairs : g];
    return total;
  };
  WAT_UNROLL
  for (int a = 0; a < kTaps; ++a) {
    WAT_UNROLL
    for (int b = 0; b < kTaps; ++b) {
      memory.threads[2 * b * T + thread] = sums.tap[a * kTaps + b][0];
      memory.threads[(2 * b + 1) * T + thread] = sums.tap[a * kTaps + b][1];
    }
    __syncthreads();
    for (int32_t i = thread; i < p.kernel_w * p.channels && a * p.kernel_w < p.K; i += T) {
      const int32_t b = i / p.channels, c = i - b * p.channels;
      memory.dsw[(a * p.kernel_w + b) * p.channels + c] = add_up(b, c);
    }
    __syncthreads();
  }
  memory.threads[thread] = sums.bias[0], memory.threads[T + thread] = sums.bias[1];
  __syncthreads();
  for (int32_t c = thread; c < p.channels; c += T) memory.gradient[p.K * p.channels + c] += add_up(0, c);
  sums = WeightSums<kTaps>{};
}

template <int kElement, bool kLast, int kTaps, int S>
WAT_DEVICE void weight_block(const DepthwiseProblem& p, int64_t index, char* shared) {
  const int thread = threadIdx.x;
  const DepthwiseBlock block = block_of(p, index);
  const int32_t pair = pair_of<kLast>(p, thread), first_strip = first_strip_of<kLast>(p, thread);
  const bool has_work = pair < p.pairs && 2 * pair < block.channels && first_strip < p.strips_at_once;
  const int32_t strips = p.vertical.classes * p.horizontal.classes * p.groups_h * p.groups_w;
  WeightSums<kTaps> sums = {};
  clear_gradient(p, shared, thread);
  int64_t drawn = -1;
  for (int64_t w = block.begin - 1; w <= block.end; ++w) {
    const int64_t shadow = w < block.begin || w == block.end ? -1 : result_tile(p, w).n / p.chunk;
    if (w + 1 < block.end) {
      const DepthwiseTile next = result_tile(p, w + 1);
      const int32_t buffer = (w + 1 - block.begin) & 1;
      stage<kLast>(p, p.source, block, source_tile(p, next), shared + p.at_source + buffer * p.source.bytes, thread);
      stage<kLast>(p, p.result, block, next, shared + p.at_result + buffer * p.result.bytes, thread);
    }
    end_of_copies();
    if (shadow != drawn && drawn >= 0) {
      flush<kLast, kTaps>(p, sums, shared);
      add_shadow(p, block, static_cast<uint32_t>(drawn), shared, thread);
      __syncthreads();
    }
    if (shadow < 0) continue;
    if (shadow != drawn) make_table<false>(p, block, static_cast<uint32_t>(shadow), kTaps, shared);
    drawn = shadow;
    wait_for_all_but_last();
    __syncthreads();
    if (has_work) {
      const DepthwiseTile result = result_tile(p, w);
      const int32_t buffer = (w - block.begin) & 1;
      const TileReader<kElement, kLast> x(p, p.source, block, source_tile(p, result),
                                          shared + p.at_source + buffer * p.source.bytes, pair);
      const TileReader<kElement, kLast> dy(p, p.result, block, result, shared + p.at_result + buffer * p.result.bytes, pair);
      for (int32_t strip = first_strip; strip < strips; strip += p.strips_at_once) {
        weight_strip<kElement, kLast, kTaps, S>(p, result, x, dy, shared, strip, sums);
      }
    }
    __syncthreads();
  }
  finish_weight(p, block, shared);
}

}  // namespace wat
