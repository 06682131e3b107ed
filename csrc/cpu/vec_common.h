// What every target shares and must still compile for itself. Included at the end of target_*.h.
#pragma once

namespace wat::WAT_ISA {

// bf16 as the upper half of fp32.
WAT_INLINE float from_bf16(uint16_t b) {
  const uint32_t bits = static_cast<uint32_t>(b) << 16;
  float f;
  memcpy(&f, &bits, sizeof(f));
  return f;
}

// Rounds to nearest even; NaN stays NaN.
WAT_INLINE uint16_t to_bf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, sizeof(bits));
  if (f != f) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

WAT_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
WAT_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

// Typed access, so that one template serves fp32 and bf16 tensors. n < width touches only n elements.
WAT_INLINE Vec load_vec(const float* p) { return Vec::load(p); }
WAT_INLINE Vec load_vec(const float* p, int n) { return Vec::load(p, n); }
#if !defined(WAT_BF16_LOADS)
WAT_INLINE Vec load_vec(const uint16_t* p, int n) {
  float buffer[Vec::width] = {};
  for (int i = 0; i < n; ++i) buffer[i] = from_bf16(p[i]);
  return Vec::load(buffer);
}
WAT_INLINE Vec load_vec(const uint16_t* p) {
  float buffer[Vec::width];
  for (int i = 0; i < Vec::width; ++i) buffer[i] = from_bf16(p[i]);
  return Vec::load(buffer);
}
WAT_INLINE void store_vec(uint16_t* p, Vec v, int n) {
  float buffer[Vec::width];
  v.store(buffer);
  for (int i = 0; i < n; ++i) p[i] = to_bf16(buffer[i]);
}
WAT_INLINE void store_vec(uint16_t* p, Vec v) { store_vec(p, v, Vec::width); }
#endif
WAT_INLINE void store_vec(float* p, Vec v) { v.store(p); }
WAT_INLINE void store_vec(float* p, Vec v, int n) { v.store(p, n); }
WAT_INLINE float load_one(const float* p) { return *p; }
WAT_INLINE float load_one(const uint16_t* p) { return from_bf16(*p); }

}  // namespace wat::WAT_ISA
