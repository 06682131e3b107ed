// What mma.sync does, for csrc/cuda/mma.h under emulator.h: the registers of the 32 threads are put together to matrices by
// the tables of the PTX ISA, multiplied, and handed back.
#pragma once

#include "../../csrc/cuda/mma.h"
#include "emulator.h"

namespace wat {

struct Operands {
  uint32_t a[4], b[2];
};

// m16n8k16: a register holds two elements, the one of lower k below.
template <class T>
static void emulate_16816(float c[4], const uint32_t a[4], const uint32_t b[2]) {
  Operands mine;
  memcpy(mine.a, a, sizeof(mine.a));
  memcpy(mine.b, b, sizeof(mine.b));
  const WarpExchange<Operands> warp(mine);
  float A[16][16], B[16][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const Operands theirs = warp.others(lane);
    const unsigned group = lane / 4, in_group = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
      const int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      A[row][column] = to_float(T{static_cast<uint16_t>(theirs.a[i / 2] >> (i % 2 * 16))});
    }
    for (int i = 0; i < 4; ++i) {
      const int row = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
      B[row][group] = to_float(T{static_cast<uint16_t>(theirs.b[i / 2] >> (i % 2 * 16))});
    }
  }
  const unsigned lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = i < 2 ? lane / 4 : lane / 4 + 8, column = lane % 4 * 2 + (i & 1);
    for (int k = 0; k < 16; ++k) c[i] += A[row][k] * B[k][column];
  }
}

void mma_16816(float c[4], const uint32_t a[4], const uint32_t b[2], Half) { emulate_16816<Half>(c, a, b); }
void mma_16816(float c[4], const uint32_t a[4], const uint32_t b[2], BFloat16) { emulate_16816<BFloat16>(c, a, b); }

// m16n8k8: a register holds one element, of which the lower 13 bits are not read.
void mma_1688(float c[4], const uint32_t a[4], const uint32_t b[2]) {
  Operands mine;
  memcpy(mine.a, a, sizeof(mine.a));
  memcpy(mine.b, b, sizeof(mine.b));
  const WarpExchange<Operands> warp(mine);
  float A[16][8], B[8][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const Operands theirs = warp.others(lane);
    const unsigned group = lane / 4, in_group = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = i % 2 == 0 ? group : group + 8, column = i < 2 ? in_group : in_group + 4;
      A[row][column] = float_of_bits(theirs.a[i] & 0xFFFFE000u);
    }
    for (int i = 0; i < 2; ++i) B[in_group + 4 * i][group] = float_of_bits(theirs.b[i] & 0xFFFFE000u);
  }
  const unsigned lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = i < 2 ? lane / 4 : lane / 4 + 8, column = lane % 4 * 2 + (i & 1);
    for (int k = 0; k < 8; ++k) c[i] += A[row][k] * B[k][column];
  }
}

}  // namespace wat
