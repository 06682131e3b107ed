// The elementwise noise of SW in registers: the same bits as wat_kernels/philox.py (masks exactly, Gaussian numbers to a
// few ulp). Include after target_*.h.
//
//   const NoiseStream noise = noise_stream(kind, amount, key, shadow);
//   noise_fill(noise, e, n, out);              out[j] = eps(e + j)
//   noise_multiply(noise, e, n, source, out);  out[j] = source[j] * eps(e + j)
//
// e is the element of SW, (o*K + t)*I + i: any run of consecutive elements may begin and end anywhere. A run costs least
// when it begins at a multiple of kNoiseStep, and a short run costs as much as one of kNoiseStep elements.
#pragma once

#include "../common/philox.h"
#include "noise_lanes.h"

namespace wat::WAT_ISA {

constexpr int kNoiseStep = 64;

struct NoiseStream {
  uint64_t key;
  uint32_t shadow;
  int kind;
  float amount;        // standard deviation of multiplicative noise
  float scale;         // what DropConnect leaves of a kept element, 1 / (1 - p)
  uint32_t threshold;  // kept when its 16 bits are >= this
};

static inline NoiseStream noise_stream(int kind, double amount, uint64_t key, int64_t shadow) {
  NoiseStream noise{key, static_cast<uint32_t>(shadow), kind, static_cast<float>(amount), 1.0f, 0};
  if (kind == kNoiseDropConnect) {
    noise.scale = 1.0f / static_cast<float>(1.0 - amount);
    noise.threshold = static_cast<uint32_t>(__builtin_nearbyint(65536.0 * amount));  // half to even, as Python rounds
  }
  return noise;
}

#if WAT_TARGET == WAT_TARGET_IS_portable

// Plain scalar code: any compiler, any processor.
static inline void noise_group(const NoiseStream& noise, uint64_t e, float out[kNoiseStep]) {
  if (noise.kind == kNoiseDropConnect) {
    for (int j = 0; j < kNoiseStep; j += 8) {
      const Philox4 block = noise_words(noise.key, noise.shadow, (e + j) / 8);
      for (int i = 0; i < 8; ++i) out[j + i] = keep_half(block, i) >= noise.threshold ? noise.scale : 0.0f;
    }
    return;
  }
  constexpr float unit = 1.0f / (1 << 24);
  for (int j = 0; j < kNoiseStep; j += 2) {
    const Philox4 block = noise_words(noise.key, noise.shadow, (e + j) / 4);
    const uint32_t* word = block.word + (j & 2);
    const float uniform = static_cast<float>((word[0] >> 8) + 1) * unit;
    const float angle = static_cast<float>(word[1] >> 8) * (6.283185307179586f * unit);
    const float radius = noise.amount * sqrtf(-2.0f * logf(uniform));
    out[j] = 1.0f + radius * cosf(angle);
    out[j + 1] = 1.0f + radius * sinf(angle);
  }
}

template <bool multiply>
static inline void noise_groups(const NoiseStream& noise, uint64_t e, int64_t n, const float* source, float* out) {
  for (int64_t j = 0; j < n; j += kNoiseStep) {
    float eps[kNoiseStep];
    noise_group(noise, e + j, eps);
    for (int i = 0; i < kNoiseStep; ++i) out[j + i] = multiply ? source[j + i] * eps[i] : eps[i];
  }
}

#else

// Philox4x32-10 of NoiseLanes::width blocks at a time. All counters but the lower block word are the same in all lanes,
// so half of rounds one and two is done once, here.
struct PhiloxLanes {
  using L = NoiseLanes;
  using Int = L::Int;
  uint64_t key0[10], key1[10];
  uint64_t round1_word2, round2_word0, round2_word2;
  uint64_t uniform_low0;  // low half of M0 * word0 in round two

  explicit PhiloxLanes(const NoiseStream& noise) {
    uint32_t k0 = static_cast<uint32_t>(noise.key), k1 = static_cast<uint32_t>(noise.key >> 32);
    for (int round = 0; round < 10; ++round) {
      key0[round] = k0;
      key1[round] = k1;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    shadow_product = uint64_t{0xCD9E8D57u} * noise.shadow;
    set_block_high(0);
  }

  void set_block_high(uint32_t block_high) {
    round1_word2 = kPurposeNoise ^ key1[0];
    const uint32_t word0 = static_cast<uint32_t>(shadow_product >> 32) ^ block_high ^ static_cast<uint32_t>(key0[0]);
    const uint64_t product = uint64_t{0xD2511F53u} * word0;
    round2_word0 = static_cast<uint32_t>(shadow_product) ^ key0[1];
    round2_word2 = (product >> 32) ^ key1[1];
    uniform_low0 = static_cast<uint32_t>(product);
  }

  // G vectors of blocks side by side: one chain of ten rounds is all latency. block_low: lower words of the block
  // numbers of the first vector, in the lower halves of 64-bit lanes
  template <int G>
  WAT_INLINE void words(Int block_low, Int word[G][4]) const {
    const Int m0 = L::set64(0xD2511F53u), m1 = L::set64(0xCD9E8D57u);
    Int c0[G], c1[G], c2[G], c3[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const Int p0 = L::multiply(g == 0 ? block_low : L::add64(block_low, L::set64(g * L::width)), m0);
      const Int p1 = L::multiply(L::xor2(L::high(p0), L::set64(round1_word2)), m1);
      c0[g] = L::xor2(L::high(p1), L::set64(round2_word0)), c1[g] = p1;
      c2[g] = L::xor2(p0, L::set64(round2_word2)), c3[g] = L::set64(uniform_low0);
    }
#pragma GCC unroll 8
    for (int round = 2; round < 10; ++round) {
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        const Int p0 = L::multiply(c0[g], m0), p1 = L::multiply(c2[g], m1);
        c0[g] = L::xor3(L::high(p1), c1[g], L::set64(key0[round]));
        c2[g] = L::xor3(L::high(p0), c3[g], L::set64(key1[round]));
        c1[g] = p1;
        c3[g] = p0;
      }
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) word[g][0] = c0[g], word[g][1] = c1[g], word[g][2] = c2[g], word[g][3] = c3[g];
  }

 private:
  uint64_t shadow_product;
};

// Box-Muller of the pairs in 32-bit lanes: radius from `uniform`, direction from `turn`, 24 bits of each.
WAT_INLINE void normal_pairs(NoiseLanes::Int uniform, NoiseLanes::Int turn, Vec* cosine, Vec* sine) {
  using L = NoiseLanes;
  const Vec u = L::to_float(L::add32(L::right<8>(uniform), L::set32(1))) * Vec::set(1.0f / (1 << 24));
  const Vec radius = L::square_root(L::minus_two_log(u));
  // The turn is a 32-bit fraction: its two upper bits, rounded, are the quadrant; the rest, read as signed after a shift
  // by two, is the angle inside it in units of 2^-32 of a quarter turn.
  const L::Int bits = L::and2(turn, L::set32(0xFFFFFF00u));
  const Vec x = L::to_float(L::left<2>(bits)) * Vec::set(1.5707963f / 4294967296.0f);  // [-pi/4, pi/4]
  const Vec x2 = x * x;
  Vec s = fma(x2, Vec::set(-1.9587884e-4f), Vec::set(8.3327482e-3f));
  s = fma(s, x2, Vec::set(-1.6666665e-1f));
  s = fma(x * x2, s, x);
  Vec c = fma(x2, Vec::set(2.4463749e-5f), Vec::set(-1.3887588e-3f));
  c = fma(c, x2, Vec::set(4.1666651e-2f));
  c = fma(c, x2, Vec::set(-0.5f));
  c = fma(c, x2, Vec::set(1.0f));
  const L::Int quadrant = L::add32(bits, L::set32(0x20000000u));
  L::swap_odd(quadrant, c, s);
  *cosine = radius * L::flip_sign(c, L::add32(quadrant, L::set32(0x40000000u)));
  *sine = radius * L::flip_sign(s, quadrant);
}

// The noise of G vectors of blocks.
template <bool drop, bool multiply, int G>
WAT_INLINE void noise_vectors(const NoiseStream& noise, const PhiloxLanes& philox, NoiseLanes::Int lanes,
                              const float* source, float* out) {
  using L = NoiseLanes;
  constexpr int vectors = drop ? 4 : 2;  // of floats from one vector of blocks
  L::Int word[G][4];
  philox.words<G>(lanes, word);
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) {
    Vec eps[4];
    if constexpr (drop) {
      L::keep(L::join(word[g][0], word[g][1]), L::join(word[g][2], word[g][3]), noise.threshold, Vec::set(noise.scale),
              eps);
    } else {
      Vec cosine, sine;
      normal_pairs(L::join(word[g][0], word[g][2]), L::join(word[g][1], word[g][3]), &cosine, &sine);
      const Vec amount = Vec::set(noise.amount), one = Vec::set(1.0f);
      L::interleave(fma(cosine, amount, one), fma(sine, amount, one), &eps[0], &eps[1]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const int at = (g * vectors + v) * Vec::width;
      (multiply ? eps[v] * Vec::load(source + at) : eps[v]).store(out + at);
    }
  }
}

template <bool drop, bool multiply>
static __attribute__((noinline)) void noise_blocks(const NoiseStream& noise, uint64_t block, int64_t n, const float* source, float* out) {
  using L = NoiseLanes;
  constexpr int step = L::width * (drop ? 8 : 4);  // elements of one vector of blocks
  PhiloxLanes philox(noise);
  for (int64_t j = 0; j < n;) {
    // lanes never straddle a carry into the upper word, because blocks begin at a multiple of the width
    philox.set_block_high(static_cast<uint32_t>(block >> 32));
    const uint64_t until_carry = ((uint64_t{1} << 32) - static_cast<uint32_t>(block)) / L::width;
    const int64_t groups = min64((n - j) / step, static_cast<int64_t>(until_carry));
    L::Int lanes = L::add64(L::set64(static_cast<uint32_t>(block)), L::lane_block());
    block += groups * L::width;
    const int64_t end = j + groups * step;
    // four vectors at a time hide the latency of the rounds (measured: 0.31 ns an element against 0.57 with one)
    for (; j + 4 * step <= end; j += 4 * step, lanes = L::add64(lanes, L::set64(4 * L::width))) {
      noise_vectors<drop, multiply, 4>(noise, philox, lanes, multiply ? source + j : nullptr, out + j);
    }
    for (; j + 2 * step <= end; j += 2 * step, lanes = L::add64(lanes, L::set64(2 * L::width))) {
      noise_vectors<drop, multiply, 2>(noise, philox, lanes, multiply ? source + j : nullptr, out + j);
    }
    for (; j < end; j += step, lanes = L::add64(lanes, L::set64(L::width))) {
      noise_vectors<drop, multiply, 1>(noise, philox, lanes, multiply ? source + j : nullptr, out + j);
    }
  }
}

// Whole groups: e and n are multiples of kNoiseStep.
template <bool multiply>
static inline void noise_groups(const NoiseStream& noise, uint64_t e, int64_t n, const float* source, float* out) {
  if (noise.kind == kNoiseDropConnect) {
    noise_blocks<true, multiply>(noise, e / 8, n, source, out);
  } else {
    noise_blocks<false, multiply>(noise, e / 4, n, source, out);
  }
}

#endif

template <bool multiply>
static inline void noise_run(const NoiseStream& noise, uint64_t e, int64_t n, const float* source, float* out) {
  if (n <= 0) return;
  if (noise.kind == kNoiseNone) {
    for (int64_t j = 0; j < n; ++j) out[j] = multiply ? source[j] : 1.0f;
    return;
  }
  int64_t done = 0;
  // A group that the run covers only in part goes through a buffer: the one it begins in, and the one it ends in.
  const auto partial = [&] {
    float eps[kNoiseStep];
    const int skip = static_cast<int>((e + done) % kNoiseStep);
    const int64_t count = min64(kNoiseStep - skip, n - done);
    noise_groups<false>(noise, e + done - skip, kNoiseStep, nullptr, eps);
    for (int64_t j = 0; j < count; ++j) out[done + j] = multiply ? source[done + j] * eps[skip + j] : eps[skip + j];
    done += count;
  };
  if (e % kNoiseStep != 0) partial();
  const int64_t whole = (n - done) / kNoiseStep * kNoiseStep;
  if (whole > 0) noise_groups<multiply>(noise, e + done, whole, multiply ? source + done : nullptr, out + done);
  done += whole;
  if (done < n) partial();
}

static inline void noise_fill(const NoiseStream& noise, uint64_t e, int64_t n, float* out) {
  noise_run<false>(noise, e, n, nullptr, out);
}

// source == out is fine.
static inline void noise_multiply(const NoiseStream& noise, uint64_t e, int64_t n, const float* source, float* out) {
  noise_run<true>(noise, e, n, source, out);
}

}  // namespace wat::WAT_ISA
