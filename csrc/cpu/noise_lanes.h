// The few integer and bit operations that noise.h needs beyond Vec, for each target. Include after target_*.h.
//
// Integers live in 64-bit lanes of which the lower 32 bits count: the one widening multiply of SIMD reads exactly
// those, so a Philox round needs no shuffle, only a shift to bring the upper half down.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns about its own avx512fintrin.h
#endif

#define WAT_TARGET_IS_portable 1
#define WAT_TARGET_IS_avx2 2
#define WAT_TARGET_IS_avx512 3
#define WAT_TARGET_IS_avx512bf16 3  // the same integers
#define WAT_TARGET_JOIN2(a, b) a##b
#define WAT_TARGET_JOIN(a, b) WAT_TARGET_JOIN2(a, b)
#define WAT_TARGET WAT_TARGET_JOIN(WAT_TARGET_IS_, WAT_ISA)

namespace wat::WAT_ISA {

#if WAT_TARGET == WAT_TARGET_IS_avx512

struct NoiseLanes {
  static constexpr int width = 8;  // Philox blocks in one vector
  using Int = __m512i;

  static WAT_INLINE Int set64(uint64_t a) { return _mm512_set1_epi64(static_cast<int64_t>(a)); }
  static WAT_INLINE Int set32(uint32_t a) { return _mm512_set1_epi32(static_cast<int>(a)); }
  // Lane -> block: even lanes hold the first half, so that unpacklo and unpackhi give consecutive blocks.
  static WAT_INLINE Int lane_block() { return _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7); }
  static WAT_INLINE Int add64(Int a, Int b) { return _mm512_add_epi64(a, b); }
  static WAT_INLINE Int multiply(Int a, Int b) { return _mm512_mul_epu32(a, b); }
  static WAT_INLINE Int high(Int a) { return _mm512_srli_epi64(a, 32); }
  static WAT_INLINE Int xor2(Int a, Int b) { return _mm512_xor_si512(a, b); }
  static WAT_INLINE Int xor3(Int a, Int b, Int c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  // 32-bit lanes (even of a, even of b): the words of one block side by side
  static WAT_INLINE Int join(Int a, Int b) {
    return _mm512_castps_si512(
        _mm512_mask_moveldup_ps(_mm512_castsi512_ps(a), 0xAAAA, _mm512_castsi512_ps(b)));
  }
  template <int n>
  static WAT_INLINE Int right(Int a) { return _mm512_srli_epi32(a, n); }
  template <int n>
  static WAT_INLINE Int left(Int a) { return _mm512_slli_epi32(a, n); }
  static WAT_INLINE Int add32(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static WAT_INLINE Int and2(Int a, Int b) { return _mm512_and_si512(a, b); }
  static WAT_INLINE Vec to_float(Int a) { return {_mm512_cvtepi32_ps(a)}; }
  static WAT_INLINE Vec square_root(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
  static WAT_INLINE Vec minus(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  static WAT_INLINE Vec flip_sign(Vec a, Int sign) {  // a ^ (sign & 0x80000000)
    return {_mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(_mm512_castps_si512(a.v), sign, set32(0x80000000u), 0x78))};
  }
  // where bit 30 of `quadrant` is set: b, else a
  static WAT_INLINE void swap_odd(Int quadrant, Vec& a, Vec& b) {
    const __mmask16 odd = _mm512_test_epi32_mask(quadrant, set32(0x40000000u));
    const __m512 first = _mm512_mask_blend_ps(odd, a.v, b.v);
    b.v = _mm512_mask_blend_ps(odd, b.v, a.v);
    a.v = first;
  }
  // (a0 b0 a1 b1 ...): the first and the second half of the blocks, see lane_block
  static WAT_INLINE void interleave(Vec a, Vec b, Vec* low, Vec* high) {
    low->v = _mm512_unpacklo_ps(a.v, b.v);
    high->v = _mm512_unpackhi_ps(a.v, b.v);
  }

  // -2 ln(u) for u = 2^-24 .. 1, exact 0 at 1. ln u = e ln 2 - ln r + ln(m r), r = 1/m to four bits from a table. The
  // last entry is r = 1/2 exactly, which cancels e ln 2 for u just below 1, where the result is small.
  static WAT_INLINE Vec minus_two_log(Vec u) {
    const __m512 r = _mm512_setr_ps(1.0f, 32 / 35.0f, 32 / 37.0f, 32 / 39.0f, 32 / 41.0f, 32 / 43.0f, 32 / 45.0f,
                                    32 / 47.0f, 32 / 49.0f, 32 / 51.0f, 32 / 53.0f, 32 / 55.0f, 32 / 57.0f, 32 / 59.0f,
                                    32 / 61.0f, 0.5f);
    const __m512 two_log_r =
        _mm512_setr_ps(0.0f, -0.179224306f, -0.290363971f, -0.395651461f, -0.495672402f, -0.590928433f, -0.681853126f, -0.768823461f, -0.852168832f, -0.932179389f, -1.00911199f, -1.08319463f, -1.15463072f, -1.22360308f, -1.29027603f, -1.38629436f);
    const __m512 e = _mm512_getexp_ps(u.v);
    const __m512 m = _mm512_getmant_ps(u.v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero);
    const __m512i place = _mm512_srli_epi32(_mm512_castps_si512(u.v), 19);  // vpermps reads the lower four bits
    const __m512 t = _mm512_fmsub_ps(m, _mm512_permutexvar_ps(place, r), _mm512_set1_ps(1.0f));
    const __m512 base = _mm512_fmadd_ps(e, _mm512_set1_ps(-1.38629436f), _mm512_permutexvar_ps(place, two_log_r));
    __m512 p = _mm512_fmadd_ps(t, _mm512_set1_ps(-0.3758302f), _mm512_set1_ps(0.50012867f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.66669493f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-2.0f));
    return {_mm512_fmadd_ps(p, t, base)};
  }

  // DropConnect: 16-bit halves of both vectors compared with the threshold, kept ones become `scale`. a holds elements
  // 0..3 of each block, b elements 4..7; writes 64 consecutive elements.
  static WAT_INLINE void keep(Int a, Int b, uint32_t threshold, Vec scale, Vec out[4]) {
    const Int least = _mm512_set1_epi16(static_cast<int16_t>(threshold));
    const __mmask32 low = _mm512_cmpge_epu16_mask(_mm512_unpacklo_epi64(a, b), least);
    const __mmask32 high = _mm512_cmpge_epu16_mask(_mm512_unpackhi_epi64(a, b), least);
    out[0].v = _mm512_maskz_mov_ps(static_cast<__mmask16>(low), scale.v);
    out[1].v = _mm512_maskz_mov_ps(static_cast<__mmask16>(low >> 16), scale.v);
    out[2].v = _mm512_maskz_mov_ps(static_cast<__mmask16>(high), scale.v);
    out[3].v = _mm512_maskz_mov_ps(static_cast<__mmask16>(high >> 16), scale.v);
  }
};

#elif WAT_TARGET == WAT_TARGET_IS_avx2

struct NoiseLanes {
  static constexpr int width = 4;
  using Int = __m256i;

  static WAT_INLINE Int set64(uint64_t a) { return _mm256_set1_epi64x(static_cast<int64_t>(a)); }
  static WAT_INLINE Int set32(uint32_t a) { return _mm256_set1_epi32(static_cast<int>(a)); }
  static WAT_INLINE Int lane_block() { return _mm256_setr_epi64x(0, 2, 1, 3); }
  static WAT_INLINE Int add64(Int a, Int b) { return _mm256_add_epi64(a, b); }
  static WAT_INLINE Int multiply(Int a, Int b) { return _mm256_mul_epu32(a, b); }
  static WAT_INLINE Int high(Int a) { return _mm256_srli_epi64(a, 32); }
  static WAT_INLINE Int xor2(Int a, Int b) { return _mm256_xor_si256(a, b); }
  static WAT_INLINE Int xor3(Int a, Int b, Int c) { return xor2(xor2(a, b), c); }
  static WAT_INLINE Int join(Int a, Int b) {
    return _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xAA);
  }
  template <int n>
  static WAT_INLINE Int right(Int a) { return _mm256_srli_epi32(a, n); }
  template <int n>
  static WAT_INLINE Int left(Int a) { return _mm256_slli_epi32(a, n); }
  static WAT_INLINE Int add32(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static WAT_INLINE Int and2(Int a, Int b) { return _mm256_and_si256(a, b); }
  static WAT_INLINE Vec to_float(Int a) { return {_mm256_cvtepi32_ps(a)}; }
  static WAT_INLINE Vec square_root(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
  static WAT_INLINE Vec minus(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  static WAT_INLINE Vec flip_sign(Vec a, Int sign) {
    return {_mm256_xor_ps(a.v, _mm256_castsi256_ps(and2(sign, set32(0x80000000u))))};
  }
  static WAT_INLINE void swap_odd(Int quadrant, Vec& a, Vec& b) {
    const __m256 odd = _mm256_castsi256_ps(_mm256_slli_epi32(quadrant, 1));  // blendv reads the sign bit
    const __m256 first = _mm256_blendv_ps(a.v, b.v, odd);
    b.v = _mm256_blendv_ps(b.v, a.v, odd);
    a.v = first;
  }
  static WAT_INLINE void interleave(Vec a, Vec b, Vec* low, Vec* high) {
    low->v = _mm256_unpacklo_ps(a.v, b.v);
    high->v = _mm256_unpackhi_ps(a.v, b.v);
  }

  // As in the AVX-512 version, with a table of eight and one more term.
  static WAT_INLINE Vec minus_two_log(Vec u) {
    const __m256 r = _mm256_setr_ps(1.0f, 16 / 19.0f, 16 / 21.0f, 16 / 23.0f, 16 / 25.0f, 16 / 27.0f, 16 / 29.0f, 0.5f);
    const __m256 two_log_r = _mm256_setr_ps(0.0f, -0.343700499f, -0.543867394f, -0.72581095f, -0.89257425f, -1.04649627f, -1.18941422f, -1.38629436f);
    const __m256i bits = _mm256_castps_si256(u.v);
    const __m256 e = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(127)));
    const __m256 m = _mm256_or_ps(_mm256_and_ps(u.v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFF))),
                                  _mm256_set1_ps(1.0f));
    const __m256i place = _mm256_srli_epi32(bits, 20);
    const __m256 t = _mm256_fmsub_ps(m, _mm256_permutevar8x32_ps(r, place), _mm256_set1_ps(1.0f));
    const __m256 base = _mm256_fmadd_ps(e, _mm256_set1_ps(-1.38629436f), _mm256_permutevar8x32_ps(two_log_r, place));
    __m256 p = _mm256_fmadd_ps(t, _mm256_set1_ps(0.28764768f), _mm256_set1_ps(-0.39993712f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.50025816f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-0.66667085f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.99999968f));
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-2.0f));
    return {_mm256_fmadd_ps(p, t, base)};
  }

  static WAT_INLINE void keep(Int a, Int b, uint32_t threshold, Vec scale, Vec out[4]) {
    const Int least = _mm256_set1_epi16(static_cast<int16_t>(threshold));
    const Int low = _mm256_unpacklo_epi64(a, b), high = _mm256_unpackhi_epi64(a, b);
    // unsigned >=: max(x, least) == x
    const Int low_kept = _mm256_cmpeq_epi16(_mm256_max_epu16(low, least), low);
    const Int high_kept = _mm256_cmpeq_epi16(_mm256_max_epu16(high, least), high);
    out[0] = widen(_mm256_castsi256_si128(low_kept), scale);
    out[1] = widen(_mm256_extracti128_si256(low_kept, 1), scale);
    out[2] = widen(_mm256_castsi256_si128(high_kept), scale);
    out[3] = widen(_mm256_extracti128_si256(high_kept, 1), scale);
  }
  static WAT_INLINE Vec widen(__m128i kept, Vec scale) {
    return {_mm256_and_ps(_mm256_castsi256_ps(_mm256_cvtepi16_epi32(kept)), scale.v)};
  }
};

#endif

}  // namespace wat::WAT_ISA
