// Philox4x32-10 and the draws made from it: the same bits as wat_kernels/philox.py, which is the definition.
//
//   key     = (low 32 bits, high 32 bits) of the int64 key
//   counter = (block low, block high, shadow, purpose)
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace wat {

constexpr uint32_t kPurposeRow = 0;
constexpr uint32_t kPurposeNoise = 1;

enum Noise : int { kNoiseNone = 0, kNoiseMultiplicative = 1, kNoiseDropConnect = 2 };

struct Philox4 {
  uint32_t word[4];
};

WAT_HOST_DEVICE Philox4 philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t key) {
  uint32_t k0 = static_cast<uint32_t>(key);
  uint32_t k1 = static_cast<uint32_t>(key >> 32);
  WAT_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    const uint32_t next0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    const uint32_t next2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    c0 = next0;
    c2 = next2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Philox4{{c0, c1, c2, c3}};
}

// The four words of the row draw of one shadow (philox.py row_words).
WAT_HOST_DEVICE Philox4 row_words(uint64_t key, uint32_t shadow) { return philox4x32(0, 0, shadow, kPurposeRow, key); }

// One block of noise words: 8 elements of a DropConnect mask or 4 of Gaussian noise.
WAT_HOST_DEVICE Philox4 noise_words(uint64_t key, uint32_t shadow, uint64_t block) {
  return philox4x32(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), shadow, kPurposeNoise, key);
}

// DropConnect's 16-bit half of element e, from the block e / 8 (philox.py keep_mask): kept when >= threshold.
WAT_HOST_DEVICE uint32_t keep_half(const Philox4& block, uint32_t e) {
  return (block.word[(e & 7) >> 1] >> ((e & 1) * 16)) & 0xFFFFu;
}

}  // namespace wat
