// The elementwise noise of SW in registers: the same bits as wat_kernels/philox.py (masks exactly, Gaussian numbers to a few
// ulp), four or eight consecutive elements at a time.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/philox.h"
#include "kernel.h"

namespace wat {

// What a launch says of its noise; the same for all shadows.
struct NoiseKind {
  int kind;            // Noise
  float amount;        // the standard deviation of multiplicative noise
  float scale;         // what DropConnect multiplies a kept element with, 1 / (1 - p)
  uint32_t threshold;  // an element is kept when its 16 bits are >= this
};

static inline NoiseKind noise_kind(int64_t kind, double amount) {
  NoiseKind noise{static_cast<int>(kind), static_cast<float>(amount), 1.0f, 0};
  if (kind == kNoiseDropConnect) {
    noise.scale = 1.0f / static_cast<float>(1.0 - amount);
    noise.threshold = static_cast<uint32_t>(std::nearbyint(65536.0 * amount));  // half to even, as Python rounds
  }
  return noise;
}

// The eight elements of one block of a DropConnect mask as bits.
WAT_HOST_DEVICE uint32_t keep_bits(uint64_t key, uint32_t shadow, uint64_t block, uint32_t threshold) {
  const Philox4 words = noise_words(key, shadow, block);
  uint32_t bits = 0;
  WAT_UNROLL
  for (uint32_t e = 0; e < 8; ++e) bits |= static_cast<uint32_t>(keep_half(words, e) >= threshold) << e;
  return bits;
}

// Two standard normal numbers of two words, by Box and Muller. The angle is an integer, 2^24 to the turn, so it is brought
// into [-1/8, 1/8] of a turn exactly and two short polynomials (those of Cephes' sinf and cosf) do.
WAT_HOST_DEVICE void box_muller(uint32_t word_radius, uint32_t word_angle, float* first, float* second) {
  constexpr float unit = 1.0f / (1 << 24);
  const float squared = -2.0f * logf(static_cast<float>((word_radius >> 8) + 1) * unit);
#if defined(__CUDA_ARCH__)
  float radius;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(radius) : "f"(squared));  // within an ulp, and no branch for denormal numbers
#else
  const float radius = sqrtf(squared);
#endif
  const int32_t angle = static_cast<int32_t>(word_angle >> 8);
  const int32_t quarter = (angle + (1 << 21)) >> 22;
  const float x = static_cast<float>(angle - (quarter << 22)) * (6.283185307179586f * unit);
  const float xx = x * x;
  const float sine = x + x * xx * (-1.6666654611e-1f + xx * (8.3321608736e-3f + xx * -1.9515295891e-4f));
  const float cosine = 1.0f - 0.5f * xx +
                       xx * xx * (4.166664568298827e-2f + xx * (-1.388731625493765e-3f + xx * 2.443315711809948e-5f));
  const float c = quarter & 1 ? sine : cosine, s = quarter & 1 ? cosine : sine;
  *first = radius * ((quarter + 1) & 2 ? -c : c);
  *second = radius * (quarter & 2 ? -s : s);
}

// The four numbers of one block of Gaussian noise.
WAT_HOST_DEVICE void normal4(uint64_t key, uint32_t shadow, uint64_t block, float out[4]) {
  const Philox4 words = noise_words(key, shadow, block);
  box_muller(words.word[0], words.word[1], &out[0], &out[1]);
  box_muller(words.word[2], words.word[3], &out[2], &out[3]);
}

// The factors of elements e, e + 1, ... e + N - 1 of SW, N being 4 or 8; kind must not be kNoiseNone. It costs least where
// e is a multiple of N: one block of DropConnect, or N / 4 of Gaussian noise; else one more. Elements before the first one
// (e counts modulo 2^64) have factors that must not be used.
template <int N>
WAT_HOST_DEVICE void noise_factors(const NoiseKind& noise, uint64_t key, uint32_t shadow, uint64_t e, float out[N]) {
  if (noise.kind == kNoiseDropConnect) {
    const uint32_t shift = static_cast<uint32_t>(e) & 7;
    uint32_t bits = keep_bits(key, shadow, e >> 3, noise.threshold) >> shift;
    if (shift + N > 8) bits |= keep_bits(key, shadow, (e + 8) >> 3, noise.threshold) << (8 - shift);
    WAT_UNROLL
    for (int j = 0; j < N; ++j) out[j] = bits >> j & 1 ? noise.scale : 0.0f;
    return;
  }
  const uint32_t shift = static_cast<uint32_t>(e) & 3;
  float z[8];  // two blocks next to each other, of which four numbers are wanted
  normal4(key, shadow, e >> 2, z);
  WAT_UNROLL
  for (int four = 0; four < N; four += 4) {
    if (shift != 0 || four + 4 < N) normal4(key, shadow, (e + four + 4) >> 2, z + 4);
    WAT_UNROLL
    for (int j = 0; j < 4; ++j) {
      const float even = shift & 2 ? z[j + 2] : z[j], odd = shift & 2 ? z[j + 3] : z[j + 1];
      out[four + j] = fmaf(noise.amount, shift & 1 ? odd : even, 1.0f);
    }
    WAT_UNROLL
    for (int j = 0; j < 4; ++j) z[j] = z[j + 4];
  }
}

}  // namespace wat
