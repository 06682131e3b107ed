// The drawn row and SW of a block's channels, in shared memory: made once for each shadow that a block meets.
#pragma once

#include "depthwise_device.h"

namespace wat {

// Where a block is: its channels and its range of tiles.
struct DepthwiseBlock {
  int64_t first_channel;
  int32_t channels;  // fewer in the last block
  int32_t part, channel_block;
  int64_t begin, end;
};

WAT_DEVICE DepthwiseBlock block_of(const DepthwiseProblem& p, int64_t index) {
  DepthwiseBlock b;
  b.channel_block = static_cast<int32_t>(index % p.channel_blocks);
  b.part = static_cast<int32_t>(index / p.channel_blocks);
  b.first_channel = static_cast<int64_t>(b.channel_block) * p.channels;
  const int64_t left = p.C - b.first_channel;
  b.channels = static_cast<int32_t>(left < p.channels ? left : p.channels);
  b.begin = p.work * b.part / p.parts;
  b.end = p.work * (b.part + 1) / p.parts;
  return b;
}

// eps of tap t of channel c; e = c * K + t, since a filter has one input channel.
WAT_DEVICE float noise_factor(const DepthwiseProblem& p, uint64_t key, uint32_t shadow, int64_t c, int32_t t) {
  if (p.noise.kind == kNoiseNone) return 1.0f;
  const uint64_t e = static_cast<uint64_t>(c) * p.K + t;
  if (p.noise.kind == kNoiseDropConnect) {
    return keep_bits(key, shadow, e >> 3, p.noise.threshold) >> (e & 7) & 1 ? p.noise.scale : 0.0f;
  }
  const Philox4 words = noise_words(key, shadow, e >> 2);
  const bool later = (e & 2) != 0;
  float first, second;
  box_muller(later ? words.word[2] : words.word[0], later ? words.word[3] : words.word[1], &first, &second);
  return fmaf(p.noise.amount, (e & 1) != 0 ? second : first, 1.0f);
}

WAT_DEVICE float gain_of(const DepthwiseProblem& p, int64_t c) {
  return p.gain == nullptr ? 1.0f : read_number(p.gain, p.gain_per_channel ? c : 0, p.gain_scalar);
}

WAT_DEVICE float weight_of(const DepthwiseProblem& p, int64_t c, int32_t t) {
  return read_number(p.weight, c * p.weight_c + t * p.weight_t, p.scalar);
}

// What the table's memory holds besides SW: [0] the number of the drawn row, [1] the number of active taps, then the taps.
WAT_DEVICE int32_t* active_taps(const DepthwiseProblem& p, char* shared) {
  return reinterpret_cast<int32_t*>(shared + p.at_active);
}

// Draws the row of `shadow`. The thresholds are compared by all threads at once: a scan of 256 would take 256 latencies.
WAT_DEVICE void draw(const DepthwiseProblem& p, uint32_t shadow, char* shared) {
  const int thread = threadIdx.x;
  if (thread == 0) active_taps(p, shared)[0] = 0;
  __syncthreads();
  const int64_t word = row_words(static_cast<uint64_t>(*p.key), shadow).word[0];
  for (int32_t row = thread; row < p.table_rows - 1; row += kDepthwiseThreads) {
    if (p.thresholds[row] <= word) add_shared(active_taps(p, shared), 1);
  }
  __syncthreads();
}

// Bit a * size + b of the mask of a class: whether tap (a, b) of the class is active. 64 bits in two words.
WAT_DEVICE void class_mask(const DepthwiseProblem& p, const TapRow& row, int32_t size, int32_t number, uint32_t* mask) {
  const int32_t classes_w = p.horizontal.classes;
  const int32_t qh = number / classes_w, qw = number - qh * classes_w;
  const DepthwiseAxis &v = p.vertical, &h = p.horizontal;
  uint64_t bits = 0;
  for (int32_t j = 0; j < tap_count(row); ++j) {
    const int32_t tap = tap_output(row, j), r = tap / p.kernel_w, s = tap - r * p.kernel_w;
    const int32_t from_r = (r - v.first_tap[qh]) * (v.tap_step < 0 ? -1 : 1);
    const int32_t from_s = (s - h.first_tap[qw]) * (h.tap_step < 0 ? -1 : 1);
    const int32_t step_r = v.tap_step < 0 ? -v.tap_step : v.tap_step, step_s = h.tap_step < 0 ? -h.tap_step : h.tap_step;
    if (from_r < 0 || from_s < 0 || from_r % step_r != 0 || from_s % step_s != 0) continue;
    const int32_t a = from_r / step_r, b = from_s / step_s;
    if (a < v.count[qh] && b < h.count[qw]) bits |= uint64_t{1} << (a * size + b);
  }
  mask[0] = static_cast<uint32_t>(bits);
  mask[1] = static_cast<uint32_t>(bits >> 32);
}

WAT_DEVICE void fill_table(const DepthwiseProblem& p, const DepthwiseBlock& block, uint32_t shadow, const TapRow& row,
                           char* shared, int thread) {
  const int32_t count = tap_count(row);
  const uint64_t key = static_cast<uint64_t>(*p.key);
  float* const table = reinterpret_cast<float*>(shared + p.at_table);
  for (int32_t i = thread; i < count * p.channels; i += kDepthwiseThreads) {
    const int32_t j = i / p.channels, c = i - j * p.channels, tap = tap_output(row, j);
    float value = 0;
    if (c < block.channels) {
      const int64_t channel = block.first_channel + c;
      for (int32_t e = 0; e < p.width; ++e) {
        const float coefficient = tap_coefficient(row, j, e);
        if (coefficient == 0.0f) break;
        value += coefficient * weight_of(p, channel, tap_input(row, j, e));
      }
      value *= noise_factor(p, key, shadow, channel, tap) * gain_of(p, channel);
    }
    table[tap * p.channels + c] = value;
  }
  float* const bias = reinterpret_cast<float*>(shared + p.at_bias);
  for (int32_t c = thread; c < p.channels; c += kDepthwiseThreads) {
    bias[c] = p.bias != nullptr && c < block.channels ? read_number(p.bias, block.first_channel + c, p.bias_scalar) : 0.0f;
  }
}

// Draws, fills the masks of the classes (`size` taps a side; 0 for none) and the list of active taps, and, where SW is
// wanted, the table [tap][channel] with SW times the gain. The caller lets all threads wait before they read.
template <bool kWeights>
WAT_DEVICE void make_table(const DepthwiseProblem& p, const DepthwiseBlock& block, uint32_t shadow, int32_t size, char* shared) {
  draw(p, shadow, shared);
  const int thread = threadIdx.x;
  int32_t* const active = active_taps(p, shared);
  const TapRow row{p.taps + active[0] * p.line, p.K, p.width};
  const int32_t count = tap_count(row);
  if constexpr (kWeights) fill_table(p, block, shadow, row, shared, thread);
  if (thread == 0) active[1] = count;
  for (int32_t j = thread; j < count; j += kDepthwiseThreads) active[2 + j] = tap_output(row, j);
  const int32_t classes = size == 0 ? 0 : p.vertical.classes * p.horizontal.classes;
  for (int32_t number = thread; number < classes; number += kDepthwiseThreads) {
    class_mask(p, row, size, number, reinterpret_cast<uint32_t*>(shared + p.at_masks) + 2 * number);
  }
}

}  // namespace wat
