// One call of the noise op, filled once in noise.cpp and passed by const reference.
//
//   out[i0, i1, i2, i3] = source[i0, i1, i2, i3] * eps(first + sum of i * element)
#pragma once

#include <cstdint>

#include "isa.h"

namespace wat {

enum class NoiseType { fp32, bf16, fp64 };

struct NoiseProblem {
  uint64_t key;
  int64_t shadow;
  int noise;  // Noise
  double amount;

  int64_t first;  // element of SW
  int64_t size[4];
  int64_t element[4];  // how many elements of SW one step is; not negative
  const void* source;  // nullptr: ones, and `out` is fp32
  int64_t source_step[4];
  void* out;  // may be `source`
  int64_t out_step[4];
  NoiseType type;
};

WAT_DECLARE(void noise_apply(const NoiseProblem& p))

}  // namespace wat
