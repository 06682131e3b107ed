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

}  // namespace wat::WAT_ISA
