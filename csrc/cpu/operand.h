// What one lane of a register tile multiplies in one step, four bytes of a panel: a float, or where the target has
// products of pairs of bf16 (WAT_BF16_PAIRS), two of them, whose products are summed in fp32. Include after target_*.h.
#pragma once

namespace wat::WAT_ISA {

#if defined(WAT_BF16_PAIRS)

constexpr int kCell = 2;  // numbers in a cell of a panel

WAT_INLINE Vec pairs_of_bits(__m256i low, __m256i high) {
  return {_mm512_castsi512_ps(
      _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)))};
}
// Cells of kCell vectors, rounded to bf16 once.
WAT_INLINE Vec make_cells(const Vec* v) {
  return pairs_of_bits((__m256i)_mm512_cvtneps_pbh(v[0].v), (__m256i)_mm512_cvtneps_pbh(v[1].v));
}
// The n numbers at `row` become cells of two neighbours each, in place, with a zero after an odd number of them.
static inline void to_cells(float* row, int64_t n) {
  for (int64_t i = 0; i < n; i += 2 * Vec::width) {
    Vec half[2];
    for (int v = 0; v < 2; ++v) {
      const int64_t at = i + v * Vec::width, left = n - at;
      half[v] = left >= Vec::width ? Vec::load(row + at)
                : left > 0         ? Vec::load(row + at, static_cast<int>(left))
                                   : Vec::zero();
    }
    _mm512_storeu_si512(row + i / 2, (__m512i)_mm512_cvtne2ps_pbh(half[1].v, half[0].v));
  }
}
// The n numbers at `row` as cells of two neighbours each.
static inline void copy_cells(const uint16_t* row, int64_t n, float* to) {
  if (n % 2) to[n / 2] = 0.0f;
  memcpy(to, row, n * sizeof(*row));
}
// Cells of n <= Vec::width numbers of two tensors; high == nullptr reads as zero.
WAT_INLINE Vec make_cells(const uint16_t* low, const uint16_t* high, int n) {
  const __mmask16 mask = static_cast<__mmask16>((1u << n) - 1);
  return pairs_of_bits(_mm256_maskz_loadu_epi16(mask, low),
                       high ? _mm256_maskz_loadu_epi16(mask, high) : _mm256_setzero_si256());
}

// A cell in all lanes: two numbers next to each other; `odd`: one, of which the panel has no other half.
template <bool odd>
WAT_INLINE Vec spread(const uint16_t* p) {
  int32_t cell = 0;
  memcpy(&cell, p, (odd ? 1 : 2) * sizeof(*p));
  return {_mm512_castsi512_ps(_mm512_set1_epi32(cell))};
}
template <class T>
using Cell = float;  // as a packed cell lies in memory
WAT_INLINE Vec spread_cell(const float* p) { return Vec::set(*p); }
// The two numbers of each cell added up.
WAT_INLINE Vec sum_cells(Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  return {_mm512_add_ps(_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)),
                        _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-65536))))};
}

WAT_INLINE Vec multiply_cells(Vec a, Vec b, Vec sum) {
  return {_mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_castps_si512(a.v), (__m512bh)_mm512_castps_si512(b.v))};
}

#else

constexpr int kCell = 1;

WAT_INLINE Vec make_cells(const Vec* v) { return *v; }
WAT_INLINE void to_cells(float*, int64_t) {}

template <bool odd, class T>
WAT_INLINE Vec spread(const T* p) {
  return Vec::set(load_one(p));
}
template <class T>
WAT_INLINE Vec make_cells(const T* p, const T*, int n) {
  return n == Vec::width ? load_vec(p) : load_vec(p, n);
}
template <class T>
using Cell = T;
WAT_INLINE Vec sum_cells(Vec a) { return a; }
template <class T>
WAT_INLINE Vec spread_cell(const T* p) {
  return Vec::set(load_one(p));
}
WAT_INLINE Vec multiply_cells(Vec a, Vec b, Vec sum) { return fma(a, b, sum); }

#endif

WAT_INLINE int64_t cells(int64_t numbers) { return (numbers + kCell - 1) / kCell; }

}  // namespace wat::WAT_ISA
