// Where PW becomes SW and dSW becomes dPW: the weight passes through the tap row in blocks of Vec::width output channels
// by a few input channels, a copy of which stays in the first cache. Include after target_*.h.
#pragma once

#include "conv_problem.h"
#include "operand.h"
#include "noise.h"

namespace wat::WAT_ISA {

constexpr int kNoiseChannels = 64;  // input channels at a time with noise: what noise_fill makes at one go

// Input channels at a time so that a block of all taps stays below 96 KiB.
static inline int64_t pack_channels(const ConvProblem& p) {
  const int64_t fit = (96 << 10) / static_cast<int64_t>(sizeof(float) * Vec::width * p.K);
  const int64_t wanted = p.noise ? kNoiseChannels : Vec::width;
  return fit >= wanted ? wanted : fit >= kCell ? fit / kCell * kCell : kCell;
}

// floats of scratch that a PackBuffer needs
static inline int64_t pack_scratch(const ConvProblem& p) {
  const int64_t channels = pack_channels(p);
  return (channels * p.K + Vec::width) * Vec::width          // block
         + (p.noise ? 2 * kNoiseChannels * Vec::width : 0);  // eps as it is made, and transposed
}

// PW[o0 + lane, i0 + i, tap] at block[at(i, tap)][lane], lane < Vec::width; lanes from `outputs` on are zero.
// Weights are dense in (i, tap), either one fastest: conv.cpp sees to it.
struct WeightBlock {
  float* data;
  int64_t step_i, step_tap;
  WAT_INLINE float* at(int64_t i, int64_t tap) const { return data + (i * step_i + tap * step_tap) * Vec::width; }
};

// rows o0.. of a (rows, columns) array with row stride w_o: `columns` columns of it, transposed into out[column][lane]
template <class T>
static inline void transpose_in(const T* source, int64_t w_o, int outputs, int64_t columns, float* out) {
  for (int64_t c = 0; c < columns; c += Vec::width) {
    const int n = columns - c < Vec::width ? static_cast<int>(columns - c) : Vec::width;
    Vec rows[Vec::width];
    if (outputs == Vec::width && n == Vec::width) {
#pragma GCC unroll 16
      for (int r = 0; r < Vec::width; ++r) rows[r] = load_vec(source + r * w_o + c);
    } else {
      for (int r = 0; r < Vec::width; ++r) rows[r] = r < outputs ? load_vec(source + r * w_o + c, n) : Vec::zero();
    }
    transpose(rows);
    float* to = out + c * Vec::width;
    for (int r = 0; r < n; ++r) rows[r].store(to + r * Vec::width);
  }
}

template <class T>
static inline WeightBlock load_block(const ConvProblem& p, int64_t o0, int outputs, int64_t i0, int64_t inputs,
                                     float* data) {
  const T* source = static_cast<const T*>(p.weight) + o0 * p.w_o + i0 * p.w_i;
  if (p.w_t == 1) {  // (o, i, tap)
    transpose_in(source, p.w_o, outputs, inputs * p.K, data);
    return {data, p.K, 1};
  }
  for (int64_t tap = 0; tap < p.K; ++tap) {  // (o, tap, i)
    transpose_in(source + tap * p.w_t, p.w_o, outputs, inputs, data + tap * inputs * Vec::width);
  }
  return {data, 1, inputs};
}

// eps of SW[o0 + lane, i0 + i, tap] at eps[i][lane]; `made` is room for as many numbers again.
static inline void noise_block(const ConvProblem& p, const NoiseStream& noise, int64_t o0, int outputs, int64_t i0,
                               int64_t inputs, int64_t tap, float* made, float* eps) {
  for (int r = 0; r < outputs; ++r) {
    noise_fill(noise, static_cast<uint64_t>(((o0 + r) * p.K + tap) * p.I + i0), inputs, made + r * kNoiseChannels);
  }
  transpose_in(made, kNoiseChannels, outputs, inputs, eps);
}

// SW of output tap j of the row at input channel i, from a block of PW.
WAT_INLINE Vec mix(const WeightBlock& block, const TapRow& row, int64_t i, int j, int entries) {
  Vec value = Vec::load(block.at(i, tap_input(row, j, 0)));
  const float first = tap_coefficient(row, j, 0);
  if (entries == 1 && first == 1.0f) return value;
  value = value * Vec::set(first);
  for (int e = 1; e < entries; ++e) {
    value = fma(Vec::load(block.at(i, tap_input(row, j, e))), Vec::set(tap_coefficient(row, j, e)), value);
  }
  return value;
}

// Calls use(j, i, inputs, block, entries, eps) for every active tap of every block of input channels of [i0, i1).
// eps is (inputs, Vec::width), or nullptr without noise.
template <class T, class F>
static inline void for_each_block(const ConvProblem& p, const TapRow& row, const NoiseStream& noise, int64_t o0,
                                  int outputs, int64_t i0, int64_t i1, float* scratch, F&& use) {
  const int64_t step = pack_channels(p);
  float* made = scratch + (step * p.K + Vec::width) * Vec::width;
  float* eps = made + kNoiseChannels * Vec::width;
  const int active = tap_count(row);
  for (int64_t i = i0; i < i1; i += step) {
    const int64_t inputs = min64(step, i1 - i);
    const WeightBlock block = load_block<T>(p, o0, outputs, i, inputs, scratch);
    for (int j = 0; j < active; ++j) {
      if (p.noise) noise_block(p, noise, o0, outputs, i, inputs, tap_output(row, j), made, eps);
      use(j, i, inputs, block, tap_entries(row, j), p.noise ? eps : nullptr);
    }
  }
}

// The panel of a sum over columns of the weight, the forward's, [active tap][cell of columns k0..k1][lanes]: `outputs` rows
// from o0 (absolute) on, vectors * width lanes. If the convolution is transposed, columns are outputs, and SW is scaled here by
// a gain for each channel.
template <class T>
static void pack_over_columns(const ConvProblem& p, const TapRow& row, const NoiseStream& noise, int64_t o0, int64_t outputs,
                         int vectors, int64_t k0, int64_t k1, float* panel, float* scratch) {
  const int64_t lanes = vectors * Vec::width, depth = cells(k1 - k0);
  const float* gain = p.transposed && p.gain && p.gain_count > 1 ? p.gain + o0 / p.og * p.I : nullptr;  // of the group
  for (int v = 0; v < vectors; ++v) {
    const int count = static_cast<int>(max64(0, min64(Vec::width, outputs - v * Vec::width)));
    for_each_block<T>(p, row, noise, o0 + v * Vec::width, count, k0, k1, scratch,
                      [&](int j, int64_t i, int64_t inputs, const WeightBlock& block, int entries, const float* eps) {
                        float* to = panel + (j * depth + (i - k0) / kCell) * lanes + v * Vec::width;
                        for (int64_t c = 0; c < inputs; c += kCell, to += lanes) {
                          Vec value[kCell];
                          for (int64_t half = 0; half < kCell; ++half) {
                            value[half] = c + half < inputs ? mix(block, row, c + half, j, entries) : Vec::zero();
                            if (c + half < inputs && eps) {
                              value[half] = value[half] * Vec::load(eps + (c + half) * Vec::width);
                            }
                            if (c + half < inputs && gain) value[half] = value[half] * Vec::set(gain[i + c + half]);
                          }
                          make_cells(value).store(to);
                        }
                      });
  }
}

// The panel of a sum over rows of the weight, the data gradient's, [active tap][cell of rows k0..k1][lanes]: `inputs` columns
// from i0 on; k counts inside the group whose first row is `group_o`. Where rows are outputs, SW is scaled here by a gain for
// each channel.
template <class T>
static void pack_over_rows(const ConvProblem& p, const TapRow& row, const NoiseStream& noise, int64_t group_o,
                               int64_t i0, int64_t inputs, int vectors, int64_t k0, int64_t k1, float* panel,
                               float* scratch) {
  const int64_t lanes = vectors * Vec::width, depth = cells(k1 - k0);
  if (inputs < lanes) memset(panel, 0, sizeof(float) * tap_count(row) * depth * lanes);
  for (int64_t k = k0; k < k1; k += Vec::width) {
    const int count = static_cast<int>(min64(Vec::width, k1 - k));
    const int64_t o0 = group_o + k;
    const bool scaled = p.gain && !p.transposed && p.gain_count > 1;
    const Vec gain = scaled ? count == Vec::width ? Vec::load(p.gain + o0) : Vec::load(p.gain + o0, count) : Vec::zero();
    for_each_block<T>(p, row, noise, o0, count, i0, i0 + inputs, scratch,
                      [&](int j, int64_t i, int64_t n, const WeightBlock& block, int entries, const float* eps) {
                        for (int64_t c = 0; c < n; c += Vec::width) {
                          const int width = static_cast<int>(min64(Vec::width, n - c));
                          Vec rows[Vec::width];
                          for (int r = 0; r < Vec::width; ++r) {
                            rows[r] = r < width ? mix(block, row, c + r, j, entries) : Vec::zero();
                            if (eps && r < width) rows[r] = rows[r] * Vec::load(eps + (c + r) * Vec::width);
                            if (scaled) rows[r] = rows[r] * gain;
                          }
                          transpose(rows);
                          float* to = panel + (j * depth + (k - k0) / kCell) * lanes + (i - i0) + c;
                          for (int r = 0; r < count; r += kCell, to += lanes) {  // rows from `count` on are zero
                            const Vec value = make_cells(rows + r);
                            if (width == Vec::width) {
                              value.store(to);
                            } else {
                              value.store(to, width);
                            }
                          }
                        }
                      });
  }
}

}  // namespace wat::WAT_ISA
