// The portable target: GCC/Clang vector extensions, four floats, any processor. Include as isa.h says.
#pragma once

#define WAT_ISA portable

#include <cmath>
#include <cstdint>
#include <cstring>

#define WAT_INLINE inline __attribute__((always_inline))

namespace wat::portable {

struct Vec {
  static constexpr int width = 4;
  typedef float Native __attribute__((vector_size(16)));
  Native v;

  static WAT_INLINE Vec zero() { return {Native{0, 0, 0, 0}}; }
  static WAT_INLINE Vec set(float a) { return {Native{a, a, a, a}}; }
  static WAT_INLINE Vec load(const float* p) {
    Vec r;
    memcpy(&r.v, p, sizeof(r.v));
    return r;
  }
  // n < width: only n elements are touched, the others read as zero
  static WAT_INLINE Vec load(const float* p, int n) {
    Vec r = zero();
    memcpy(&r.v, p, n * sizeof(float));
    return r;
  }
  WAT_INLINE void store(float* p) const { memcpy(p, &v, sizeof(v)); }
  WAT_INLINE void store(float* p, int n) const { memcpy(p, &v, n * sizeof(float)); }
};

WAT_INLINE Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
WAT_INLINE Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
WAT_INLINE Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }  // a * b + c
WAT_INLINE float sum(Vec a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }

// Transposes the block of Vec::width vectors at r.
WAT_INLINE void transpose(Vec* r) {
  float in[4][4], out[4][4];
  for (int i = 0; i < 4; ++i) r[i].store(in[i]);
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) out[i][j] = in[j][i];
  }
  for (int i = 0; i < 4; ++i) r[i] = Vec::load(out[i]);
}

}  // namespace wat::portable

#include "vec_common.h"
