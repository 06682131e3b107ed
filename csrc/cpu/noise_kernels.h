// The noise op, compiled three times; include after target_*.h, see isa.h.
//
// Noise is cheap in long runs of elements, but a crop or a transposed layout asks for it in pieces. So a task makes the
// run that its piece lies in, in a buffer of the first-level cache, and picks from it.
#pragma once

#include "noise.h"
#include "noise_problem.h"
#include "threads.h"

namespace wat::WAT_ISA {

constexpr int64_t kNoiseBuffer = 4096;

WAT_INLINE float noise_product(float a, float eps) { return a * eps; }
WAT_INLINE double noise_product(double a, float eps) { return a * static_cast<double>(eps); }
WAT_INLINE uint16_t noise_product(uint16_t a, float eps) { return to_bf16(from_bf16(a) * eps); }

// How a problem is cut: a task has `group` indices of dimension `split` and everything inside of it.
struct NoiseCut {
  int split = 3;
  int64_t group = 1, groups = 1, outer = 1;

  explicit NoiseCut(const NoiseProblem& p) {
    int64_t span = 1;  // elements of SW from the first to the last of one index of `split`
    // gaps in the run are noise made for nothing: up to half of it, or what a short run costs anyway
    const auto near = [&](int d) { return p.element[d] <= max64(kNoiseStep, 2 * span); };
    while (split > 0 && near(split) && (p.size[split] - 1) * p.element[split] + span <= kNoiseBuffer) {
      span += (p.size[split] - 1) * p.element[split];
      --split;
    }
    if (near(split)) group = min64(p.size[split], (kNoiseBuffer - span) / max64(p.element[split], 1) + 1);
    groups = (p.size[split] + group - 1) / group;
    for (int d = 0; d < split; ++d) outer *= p.size[d];
  }
};

template <class T>
static void noise_line(int64_t n, const float* eps, int64_t eps_step, const T* source, int64_t source_step, T* out,
                       int64_t out_step) {
  if (eps_step == 1 && source_step == 1 && out_step == 1) {
    for (int64_t i = 0; i < n; ++i) out[i] = noise_product(source[i], eps[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i * out_step] = noise_product(source[i * source_step], eps[i * eps_step]);
  }
}

template <class T>
static void noise_task(const NoiseProblem& p, const NoiseStream& noise, const NoiseCut& cut, int64_t task) {
  int64_t low[4] = {}, high[4];
  low[cut.split] = task % cut.groups * cut.group;
  high[cut.split] = min64(p.size[cut.split], low[cut.split] + cut.group);
  int64_t outer = task / cut.groups;
  for (int d = cut.split - 1; d >= 0; --d) {
    low[d] = outer % p.size[d];
    high[d] = low[d] + 1;
    outer /= p.size[d];
  }
  for (int d = cut.split + 1; d < 4; ++d) high[d] = p.size[d];

  int64_t element = p.first, source_at = 0, out_at = 0, span = 1;
  for (int d = 0; d < 4; ++d) {
    element += low[d] * p.element[d];
    source_at += low[d] * p.source_step[d];
    out_at += low[d] * p.out_step[d];
    span += (high[d] - low[d] - 1) * p.element[d];
  }
  const T* source = static_cast<const T*>(p.source) + source_at;
  T* out = static_cast<T*>(p.out) + out_at;
  if constexpr (sizeof(T) == sizeof(float)) {
    const bool one_run = cut.split == 3 && p.element[3] == 1 && p.out_step[3] == 1;
    if (p.source == nullptr) {  // always one run
      return noise_fill(noise, static_cast<uint64_t>(element), span, out);
    }
    if (one_run && p.source_step[3] == 1) {
      return noise_multiply(noise, static_cast<uint64_t>(element), span, source, out);
    }
  }
  float eps[kNoiseBuffer];
  noise_fill(noise, static_cast<uint64_t>(element), span, eps);
  for (int64_t a = 0; a < high[0] - low[0]; ++a) {
    for (int64_t b = 0; b < high[1] - low[1]; ++b) {
      for (int64_t c = 0; c < high[2] - low[2]; ++c) {
        const auto at = [&](const int64_t* step) { return a * step[0] + b * step[1] + c * step[2]; };
        noise_line(high[3] - low[3], eps + at(p.element), p.element[3], source + at(p.source_step), p.source_step[3],
                   out + at(p.out_step), p.out_step[3]);
      }
    }
  }
}

void noise_apply(const NoiseProblem& p) {
  const NoiseCut cut(p);
  const NoiseStream noise = noise_stream(p.noise, p.amount, p.key, p.shadow);
  auto task = [&](int, int64_t task) {
    if (p.type == NoiseType::fp32) {
      noise_task<float>(p, noise, cut, task);
    } else if (p.type == NoiseType::bf16) {
      noise_task<uint16_t>(p, noise, cut, task);
    } else {
      noise_task<double>(p, noise, cut, task);
    }
  };
  for_each_task(cut.outer * cut.groups, num_workers(), task);
}

}  // namespace wat::WAT_ISA
