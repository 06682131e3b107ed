// The avx512 target, and what target_avx512bf16.h shares with it. Include as isa.h says: everything after this header is
// compiled for it.
#pragma once

#if !defined(WAT_ISA)
#define WAT_ISA avx512
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <immintrin.h>

#if defined(__clang__)
#if defined(WAT_BF16_PAIRS)
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2"))), apply_to = function)
#endif
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2")
#if defined(WAT_BF16_PAIRS)
#pragma GCC target("avx512bf16")
#endif
#endif

#define WAT_INLINE inline __attribute__((always_inline))

namespace wat::WAT_ISA {

struct Vec {
  static constexpr int width = 16;
  __m512 v;

  static WAT_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
  static WAT_INLINE Vec set(float a) { return {_mm512_set1_ps(a)}; }
  static WAT_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  // n < width: only n elements are touched, the others read as zero
  static WAT_INLINE __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static WAT_INLINE Vec load(const float* p, int n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
  WAT_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  WAT_INLINE void store(float* p, int n) const { _mm512_mask_storeu_ps(p, mask(n), v); }
};

WAT_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
WAT_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
WAT_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c
WAT_INLINE float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }

// Transposes the block of Vec::width vectors at r: pairs, then quadruples, then 128-bit lanes.
WAT_INLINE void transpose(Vec* r) {
  constexpr int n = 16;
  __m512 t[n], u[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
  }
#pragma GCC unroll 16
  for (int i = 0; i < n; i += 4) {
    u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xEE);
    u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88), b = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xDD);
    const __m512 c = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xDD);
    r[i].v = _mm512_shuffle_f32x4(a, c, 0x88);
    r[i + 8].v = _mm512_shuffle_f32x4(a, c, 0xDD);
    r[i + 4].v = _mm512_shuffle_f32x4(b, d, 0x88);
    r[i + 12].v = _mm512_shuffle_f32x4(b, d, 0xDD);
  }
}

}  // namespace wat::WAT_ISA

#include "vec_common.h"
