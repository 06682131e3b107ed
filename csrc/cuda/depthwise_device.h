// What the depthwise kernels read, write and wait with: copies of 16 bytes, numbers of three dtypes, the arrival of blocks.
#pragma once

#include "depthwise_problem.h"
#include "kernel.h"
#include "scalar.h"

namespace wat {

#if defined(__CUDACC__)
#define WAT_PRAGMA(text) _Pragma(#text)
#define WAT_UNROLL_BY(n) WAT_PRAGMA(unroll n)
#define WAT_DEVICE_MEMBER __device__ __forceinline__
#define WAT_GRID_CONSTANT __grid_constant__

WAT_DEVICE void copy16(char* to, const char* from, bool valid) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
WAT_DEVICE void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
WAT_DEVICE void wait_for_all_but_last() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }
WAT_DEVICE void store16(char* to, const char* from) { *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from); }
WAT_DEVICE void add_shared(int32_t* to, int32_t value) { atomicAdd(to, value); }

// What this thread wrote is visible to blocks that arrive after its own.
WAT_DEVICE void publish() { __threadfence(); }
// Number of blocks that arrived before.
WAT_DEVICE int32_t arrive(int32_t* counter) {
  __threadfence();
  return atomicAdd(counter, 1);
}
WAT_DEVICE void after_arrival() { __threadfence(); }
WAT_DEVICE float read_fresh(const float* from) { return __ldcg(from); }

WAT_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

#else
#define WAT_UNROLL_BY(n)
#define WAT_DEVICE_MEMBER inline
#define WAT_GRID_CONSTANT

WAT_DEVICE void copy16(char* to, const char* from, bool valid) {
  if (valid) memcpy(to, from, 16);
  else memset(to, 0, 16);
}
WAT_DEVICE void end_of_copies() {}
WAT_DEVICE void wait_for_all_but_last() {}
WAT_DEVICE void store16(char* to, const char* from) { memcpy(to, from, 16); }
WAT_DEVICE void add_shared(int32_t* to, int32_t value) { *to += value; }
WAT_DEVICE void publish() {}
WAT_DEVICE int32_t arrive(int32_t* counter) { return (*counter)++; }
WAT_DEVICE void after_arrival() {}
WAT_DEVICE float read_fresh(const float* from) { return *from; }

WAT_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return static_cast<uint32_t>((uint64_t{a} * b) >> 32); }

#endif

WAT_DEVICE int32_t divide(int32_t n, const FastDivide& by) {
  return by.multiplier == 0 ? n : static_cast<int32_t>(multiply_high(static_cast<uint32_t>(n), by.multiplier));
}

// Element i of an array of numbers.
WAT_DEVICE float read_number(const char* from, int64_t i, Scalar scalar) {
  if (scalar == Scalar::kFloat) return reinterpret_cast<const float*>(from)[i];
  return scalar == Scalar::kBFloat16 ? to_float(reinterpret_cast<const BFloat16*>(from)[i]) : to_float(reinterpret_cast<const Half*>(from)[i]);
}

WAT_DEVICE void write_number(char* to, int64_t i, Scalar scalar, float value) {
  if (scalar == Scalar::kFloat) {
    reinterpret_cast<float*>(to)[i] = value;
  } else if (scalar == Scalar::kBFloat16) {
    round_to(value, reinterpret_cast<BFloat16*>(to) + i);
  } else {
    round_to(value, reinterpret_cast<Half*>(to) + i);
  }
}

WAT_DEVICE uint32_t round_bits(bool brain, float value) {
  return brain ? from_float<BFloat16>(value).bits : from_float<Half>(value).bits;
}

WAT_DEVICE void copy_number(char* to, const char* from, int32_t bytes) {
  if (bytes == 4) *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<const uint32_t*>(from);
  else *reinterpret_cast<uint16_t*>(to) = *reinterpret_cast<const uint16_t*>(from);
}

}  // namespace wat
