// The avx2 target. Include as isa.h says: everything after this header is compiled for it.
#pragma once

#define WAT_ISA avx2

#include <cmath>
#include <cstdint>
#include <cstring>
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif

#define WAT_INLINE inline __attribute__((always_inline))

namespace wat::avx2 {

struct Vec {
  static constexpr int width = 8;
  __m256 v;

  static WAT_INLINE Vec zero() { return {_mm256_setzero_ps()}; }
  static WAT_INLINE Vec set(float a) { return {_mm256_set1_ps(a)}; }
  static WAT_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  // n < width: only n elements are touched, the others read as zero
  static WAT_INLINE __m256i mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static WAT_INLINE Vec load(const float* p, int n) { return {_mm256_maskload_ps(p, mask(n))}; }
  WAT_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  WAT_INLINE void store(float* p, int n) const { _mm256_maskstore_ps(p, mask(n), v); }
};

WAT_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
WAT_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
WAT_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c
WAT_INLINE float sum(Vec a) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

// Transposes the block of Vec::width vectors at r: pairs, then quadruples, then 128-bit lanes.
WAT_INLINE void transpose(Vec* r) {
  constexpr int n = 8;
  __m256 t[n], u[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
  }
#pragma GCC unroll 16
  for (int i = 0; i < n; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    r[i].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

}  // namespace wat::avx2

#include "vec_common.h"
