// Eight consecutive elements of a line of a matrix in registers: 16 bytes of fp16 or bf16, 32 of fp32, and one block of
// DropConnect noise.
#pragma once

#include "scalar.h"

namespace wat {

struct alignas(16) Words4 {
  uint32_t word[4];
};

// 16 bytes that will not be read again: they need not stay in a cache.
WAT_HOST_DEVICE Words4 load_once(const void* from) {
#if defined(__CUDA_ARCH__)
  const uint4 loaded = __ldcs(static_cast<const uint4*>(from));
  return {{loaded.x, loaded.y, loaded.z, loaded.w}};
#else
  return *static_cast<const Words4*>(from);
#endif
}

// 16 bytes that other blocks read as well.
WAT_HOST_DEVICE Words4 load_shared_by_blocks(const void* from) {
#if defined(__CUDA_ARCH__)
  const uint4 loaded = __ldg(static_cast<const uint4*>(from));
  return {{loaded.x, loaded.y, loaded.z, loaded.w}};
#else
  return *static_cast<const Words4*>(from);
#endif
}

WAT_HOST_DEVICE uint32_t bits_of(float x) { return bits_of_float(x); }
WAT_HOST_DEVICE uint32_t bits_of(Half x) { return x.bits; }
WAT_HOST_DEVICE uint32_t bits_of(BFloat16 x) { return x.bits; }

template <class T>
struct Eight {
  static constexpr int kWords = 2 * sizeof(T);
  static constexpr int kPerWord = 4 / sizeof(T);
  uint32_t word[kWords];

  WAT_HOST_DEVICE_MEMBER void clear() {
    WAT_UNROLL
    for (int w = 0; w < kWords; ++w) word[w] = 0;
  }
  WAT_HOST_DEVICE_MEMBER void put(int j, T x) { word[j / kPerWord] |= bits_of(x) << (j % kPerWord * 16); }
  WAT_HOST_DEVICE_MEMBER float operator[](int j) const {
    if constexpr (sizeof(T) == 4) {
      return float_of_bits(word[j]);
    } else {
      return to_float(T{static_cast<uint16_t>(word[j / 2] >> (j % 2 * 16))});
    }
  }
};

// The elements of a line that is read or written: element j is at data[j * step].
template <class T>
struct Line {
  T* data;
  int64_t step, size;
  bool whole_words;  // step is 1 and data is at a multiple of 16 bytes
};

// Elements [first, first + 8), zero beyond the line; first is a multiple of 8. `once`: nothing else reads them.
template <bool once, class T>
WAT_HOST_DEVICE Eight<T> load_eight(const Line<const T>& line, int64_t first) {
  Eight<T> eight;
  if (line.whole_words && first + 8 <= line.size) {
    WAT_UNROLL
    for (int part = 0; part < Eight<T>::kWords / 4; ++part) {
      const char* from = reinterpret_cast<const char*>(line.data + first) + 16 * part;
      const Words4 words = once ? load_once(from) : load_shared_by_blocks(from);
      WAT_UNROLL
      for (int w = 0; w < 4; ++w) eight.word[4 * part + w] = words.word[w];
    }
    return eight;
  }
  eight.clear();
  WAT_UNROLL
  for (int j = 0; j < 8; ++j) {
    if (first + j < line.size) eight.put(j, line.data[(first + j) * line.step]);
  }
  return eight;
}

// Elements first, first + direction, ... as far as they are in the line, zero elsewhere.
template <class T>
WAT_HOST_DEVICE Eight<T> load_eight_anywhere(const Line<const T>& line, int64_t first, int direction) {
  Eight<T> eight;
  eight.clear();
  WAT_UNROLL
  for (int j = 0; j < 8; ++j) {
    const int64_t index = first + direction * j;
    if (index >= 0 && index < line.size) eight.put(j, line.data[index * line.step]);
  }
  return eight;
}

// Rounds eight numbers to elements [first, first + 8), those beyond the line excepted; first is a multiple of 8.
template <class T>
WAT_HOST_DEVICE void store_eight(const Line<T>& line, int64_t first, const float values[8]) {
  if (line.whole_words && first + 8 <= line.size) {
    Eight<T> eight;
    eight.clear();
    WAT_UNROLL
    for (int j = 0; j < 8; ++j) eight.put(j, from_float<T>(values[j]));
    WAT_UNROLL
    for (int part = 0; part < Eight<T>::kWords / 4; ++part) {
      Words4 words;
      WAT_UNROLL
      for (int w = 0; w < 4; ++w) words.word[w] = eight.word[4 * part + w];
      *reinterpret_cast<Words4*>(reinterpret_cast<char*>(line.data + first) + 16 * part) = words;
    }
    return;
  }
  WAT_UNROLL
  for (int j = 0; j < 8; ++j) {
    if (first + j < line.size) line.data[(first + j) * line.step] = from_float<T>(values[j]);
  }
}

}  // namespace wat
