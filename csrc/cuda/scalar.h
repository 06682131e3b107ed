// fp32, fp16 and bf16 as kernels read and write them: numbers are computed with in fp32, memory holds `bits`.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernel.h"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace wat {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

WAT_HOST_DEVICE float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

WAT_HOST_DEVICE uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

WAT_HOST_DEVICE float to_float(float x) { return x; }

WAT_HOST_DEVICE float to_float(BFloat16 x) { return float_of_bits(static_cast<uint32_t>(x.bits) << 16); }

WAT_HOST_DEVICE float to_float(Half x) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(x.bits));
#else
  _Float16 half;
  memcpy(&half, &x, sizeof(half));
  return static_cast<float>(half);
#endif
}

// To the nearest, ties to even.
WAT_HOST_DEVICE void round_to(float x, float* to) { *to = x; }

WAT_HOST_DEVICE void round_to(float x, BFloat16* to) {
#if defined(__CUDACC__)
  to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  const uint32_t bits = bits_of_float(x);
  to->bits = std::isnan(x) ? 0x7FFF : static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
#endif
}

WAT_HOST_DEVICE void round_to(float x, Half* to) {
#if defined(__CUDACC__)
  to->bits = __half_as_ushort(__float2half_rn(x));
#else
  const _Float16 half = static_cast<_Float16>(x);
  memcpy(to, &half, sizeof(half));
#endif
}

template <class T>
WAT_HOST_DEVICE T from_float(float x) {
  T value;
  round_to(x, &value);
  return value;
}

}  // namespace wat
