// Products of small matrices by the 32 threads of a warp together, on the tensor cores of sm_80 and later:
//
//   C (16 x 8, fp32) += A (16 x 16) B (16 x 8)
//
// With g = lane / 4 and t = lane % 4, a thread holds rows g and g + 8 of A and column g of B at the same four k, which ones
// is up to the caller as long as the four t of one g hold all 16 and A and B agree; and of C
//   c[0] (g, 2t)   c[1] (g, 2t + 1)   c[2] (g + 8, 2t)   c[3] (g + 8, 2t + 1)
// Source of the layouts: PTX ISA, mma.m16n8k16 (fp16, bf16) and mma.m16n8k8 (tf32).
//
// fp32 is cut in two tf32 numbers, x = big + small, and of the four products all but small * small, which is below
// rounding, are added: "3xTF32". Tensor cores round their sums towards zero, so a sum is theirs for 16 k only, and what
// they give is added in the ordinary way. Source: Ootomo, Yokota, "Recovering single precision accuracy from Tensor Cores
// while surpassing the FP32 theoretical peak performance", IJHPCA 2022.
#pragma once

#include "scalar.h"

namespace wat {

template <class T>
struct FragmentA {
  uint32_t word[4];
};
template <class T>
struct FragmentB {
  uint32_t word[2];
};
template <>
struct FragmentA<float> {
  uint32_t big[8], small[8];  // two products of 8 k: (lower k0, upper k0, lower k1, upper k1), and k2, k3
};
template <>
struct FragmentB<float> {
  uint32_t big[4], small[4];
};

// Two numbers rounded to T in one register, `low` in its lower half.
WAT_HOST_DEVICE uint32_t pack(float low, float high, Half) {
#if defined(__CUDA_ARCH__)
  const __half2 both = __floats2half2_rn(low, high);
  uint32_t word;
  memcpy(&word, &both, sizeof(word));
  return word;
#else
  return from_float<Half>(low).bits | static_cast<uint32_t>(from_float<Half>(high).bits) << 16;
#endif
}
WAT_HOST_DEVICE uint32_t pack(float low, float high, BFloat16) {
#if defined(__CUDA_ARCH__)
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  uint32_t word;
  memcpy(&word, &both, sizeof(word));
  return word;
#else
  return from_float<BFloat16>(low).bits | static_cast<uint32_t>(from_float<BFloat16>(high).bits) << 16;
#endif
}

// To the nearest tf32 number, and what that leaves; of the rest the tensor core drops what is beyond its 10 bits.
WAT_HOST_DEVICE void split_tf32(float x, uint32_t* big, uint32_t* small) {
  *big = (bits_of_float(x) + 0x1000u) & 0xFFFFE000u;
  *small = bits_of_float(x - float_of_bits(*big));
}

// One half of A: rows g (lower) and g + 8 (upper) at the first two of the thread's four k, or at the last two. 16-bit
// numbers are rounded to T here.
template <class T>
WAT_HOST_DEVICE void set_a(FragmentA<T>* a, int half, float lower0, float lower1, float upper0, float upper1) {
  if constexpr (sizeof(T) == 4) {
    split_tf32(lower0, &a->big[4 * half], &a->small[4 * half]);
    split_tf32(upper0, &a->big[4 * half + 1], &a->small[4 * half + 1]);
    split_tf32(lower1, &a->big[4 * half + 2], &a->small[4 * half + 2]);
    split_tf32(upper1, &a->big[4 * half + 3], &a->small[4 * half + 3]);
  } else {
    a->word[2 * half] = pack(lower0, lower1, T{});
    a->word[2 * half + 1] = pack(upper0, upper1, T{});
  }
}

// What was set as the second half, as the first.
template <class T>
WAT_HOST_DEVICE void move_half(FragmentA<T>* a) {
  if constexpr (sizeof(T) == 4) {
    WAT_UNROLL
    for (int w = 0; w < 4; ++w) {
      a->big[w] = a->big[w + 4];
      a->small[w] = a->small[w + 4];
    }
  } else {
    a->word[0] = a->word[2];
    a->word[1] = a->word[3];
  }
}

// Both halves: row g and row g + 8 at the four k.
template <class T>
WAT_HOST_DEVICE void make_a(const float lower[4], const float upper[4], FragmentA<T>* a) {
  WAT_UNROLL
  for (int half = 0; half < 2; ++half) {
    set_a(a, half, lower[2 * half], lower[2 * half + 1], upper[2 * half], upper[2 * half + 1]);
  }
}

// column: column g of B at the thread's four k.
template <class T>
WAT_HOST_DEVICE void make_b(const float column[4], FragmentB<T>* b) {
  if constexpr (sizeof(T) == 4) {
    WAT_UNROLL
    for (int k = 0; k < 4; ++k) split_tf32(column[k], &b->big[k], &b->small[k]);
  } else {
    b->word[0] = pack(column[0], column[1], T{});
    b->word[1] = pack(column[2], column[3], T{});
  }
}

#if defined(__CUDACC__)

WAT_DEVICE void mma_16816(float c[4], const uint32_t a[4], const uint32_t b[2], Half) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

WAT_DEVICE void mma_16816(float c[4], const uint32_t a[4], const uint32_t b[2], BFloat16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

WAT_DEVICE void mma_1688(float c[4], const uint32_t a[4], const uint32_t b[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#else  // these three, and nothing else, are emulated

void mma_16816(float c[4], const uint32_t a[4], const uint32_t b[2], Half);
void mma_16816(float c[4], const uint32_t a[4], const uint32_t b[2], BFloat16);
void mma_1688(float c[4], const uint32_t a[4], const uint32_t b[2]);

#endif

template <class T>
WAT_DEVICE void multiply_add(float c[4], const FragmentA<T>& a, const FragmentB<T>& b) {
  if constexpr (sizeof(T) == 4) {
    float sum[4] = {};
    WAT_UNROLL
    for (int half = 0; half < 2; ++half) {
      mma_1688(sum, a.small + 4 * half, b.big + 2 * half);
      mma_1688(sum, a.big + 4 * half, b.small + 2 * half);
    }
    WAT_UNROLL
    for (int half = 0; half < 2; ++half) mma_1688(sum, a.big + 4 * half, b.big + 2 * half);
    WAT_UNROLL
    for (int n = 0; n < 4; ++n) c[n] += sum[n];
  } else {
    mma_16816(c, a.word, b.word, T{});
  }
}

}  // namespace wat
