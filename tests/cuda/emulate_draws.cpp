// The draws of csrc/common and csrc/cuda/noise.h, as a kernel makes them, for tests/cuda/test_draws.py.
#include "emulator.h"

#include "../../csrc/common/tap_table.h"
#include "../../csrc/cuda/noise.h"
#include "../../csrc/cuda/scalar.h"

namespace wat {

// Thread n makes the factors of elements first + n * step ... + 7.
__global__ void factors_kernel(NoiseKind noise, uint64_t key, uint32_t shadow, uint64_t first, uint64_t step, float* out) {
  const unsigned n = blockIdx.x * blockDim.x + threadIdx.x;
  noise_factors<8>(noise, key, shadow, first + n * step, out + 8 * n);
}

}  // namespace wat

extern "C" {

void philox(const uint32_t* counter, uint64_t key, uint32_t* out) {
  const wat::Philox4 words = wat::philox4x32(counter[0], counter[1], counter[2], counter[3], key);
  memcpy(out, words.word, sizeof(words.word));
}

int64_t draw_row(const int64_t* thresholds, int64_t rows, uint64_t key, uint32_t shadow) {
  return wat::draw_row(thresholds, rows, key, shadow);
}

// (64 * blocks, 8) factors
void factors(int kind, double amount, uint64_t key, uint32_t shadow, uint64_t first, uint64_t step, int blocks, float* out) {
  const wat::NoiseKind noise = wat::noise_kind(kind, amount);
  emulate(0, blocks, 64, [&] { wat::factors_kernel(noise, key, shadow, first, step, out); });
}

void round_trip(int half, int count, const float* in, float* out) {
  for (int i = 0; i < count; ++i) {
    out[i] = half ? wat::to_float(wat::from_float<wat::Half>(in[i])) : wat::to_float(wat::from_float<wat::BFloat16>(in[i]));
  }
}
}
