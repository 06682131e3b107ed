// The avx512bf16 target: target_avx512.h, conversions of the processor, and panels of pairs of bf16. Include as isa.h says.
#pragma once

#define WAT_ISA avx512bf16
#define WAT_BF16_PAIRS 1  // operand.h: a panel holds pairs of bf16
#define WAT_BF16_LOADS 1  // the loads and stores of bf16 below replace those of vec_common.h

#include "target_avx512.h"

namespace wat::avx512bf16 {

WAT_INLINE Vec load_vec(const uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
WAT_INLINE Vec load_vec(const uint16_t* p, int n) {
  const __m256i bits = _mm256_maskz_loadu_epi16(Vec::mask(n), p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
// Round to nearest even as to_bf16 does, but numbers below 2^-126 become zero, which these units read them as anyway.
WAT_INLINE void store_vec(uint16_t* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v.v));
}
WAT_INLINE void store_vec(uint16_t* p, Vec v, int n) {
  _mm256_mask_storeu_epi16(p, Vec::mask(n), (__m256i)_mm512_cvtneps_pbh(v.v));
}

}  // namespace wat::avx512bf16
