// 16 bytes of a line of a matrix in registers, what one instruction loads: four elements of fp32, eight of fp16 or bf16.
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
WAT_HOST_DEVICE Words4 load_often(const void* from) {
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
constexpr int kPacket = 16 / sizeof(T);  // elements
template <class T>
constexpr int kPerWord = 4 / sizeof(T);

// Element h of a word.
template <class T>
WAT_HOST_DEVICE float part_of_word(uint32_t word, int h) {
  if constexpr (sizeof(T) == 4) {
    return float_of_bits(word);
  } else {
    return to_float(T{static_cast<uint16_t>(word >> (16 * h))});
  }
}

template <class T>
struct Packet {
  Words4 words;

  WAT_HOST_DEVICE_MEMBER void clear() { words = {}; }
  WAT_HOST_DEVICE_MEMBER void put(int j, T x) { words.word[j / kPerWord<T>] |= bits_of(x) << (j % kPerWord<T> * 16); }
  WAT_HOST_DEVICE_MEMBER float operator[](int j) const {
    return part_of_word<T>(words.word[j / kPerWord<T>], j % kPerWord<T>);
  }
};

// A line that is read or written: element j is at data[j * step].
template <class T>
struct Line {
  T* data;
  int64_t step, size;
  bool whole_packets;  // step is 1 and data is at a multiple of 16 bytes
};

// The packet of elements from `first` on, zero beyond the line; first is a multiple of its size. `once`: see load_once.
template <bool once, class T>
WAT_HOST_DEVICE Packet<T> load_packet(const Line<const T>& line, int64_t first) {
  Packet<T> packet;
  if (line.whole_packets && first + kPacket<T> <= line.size) {
    packet.words = once ? load_once(line.data + first) : load_often(line.data + first);
    return packet;
  }
  packet.clear();
  WAT_UNROLL
  for (int j = 0; j < kPacket<T>; ++j) {
    if (first + j < line.size) packet.put(j, line.data[(first + j) * line.step]);
  }
  return packet;
}

// Elements first, first + direction, ... as far as they are in the line, zero elsewhere.
template <class T>
WAT_HOST_DEVICE Packet<T> load_packet_anywhere(const Line<const T>& line, int64_t first, int direction) {
  Packet<T> packet;
  packet.clear();
  WAT_UNROLL
  for (int j = 0; j < kPacket<T>; ++j) {
    const int64_t index = first + direction * j;
    if (index >= 0 && index < line.size) packet.put(j, line.data[index * line.step]);
  }
  return packet;
}

// Elements [first, first + 4), zero beyond the line; first is a multiple of 4.
template <class T>
WAT_HOST_DEVICE void load_four(const Line<const T>& line, int64_t first, float values[4]) {
  if (line.whole_packets && first + 4 <= line.size) {
    if constexpr (sizeof(T) == 4) {
      const Words4 words = load_often(line.data + first);
      WAT_UNROLL
      for (int j = 0; j < 4; ++j) values[j] = float_of_bits(words.word[j]);
    } else {
      const uint64_t word = *reinterpret_cast<const uint64_t*>(line.data + first);
      WAT_UNROLL
      for (int j = 0; j < 4; ++j) values[j] = to_float(T{static_cast<uint16_t>(word >> (16 * j))});
    }
    return;
  }
  WAT_UNROLL
  for (int j = 0; j < 4; ++j) values[j] = first + j < line.size ? to_float(line.data[(first + j) * line.step]) : 0.0f;
}

// Rounds the numbers of a packet to the elements from `first` on, those beyond the line excepted.
template <class T>
WAT_HOST_DEVICE void store_packet(const Line<T>& line, int64_t first, const float values[kPacket<T>]) {
  if (line.whole_packets && first + kPacket<T> <= line.size) {
    Packet<T> packet;
    packet.clear();
    WAT_UNROLL
    for (int j = 0; j < kPacket<T>; ++j) packet.put(j, from_float<T>(values[j]));
    *reinterpret_cast<Words4*>(line.data + first) = packet.words;
    return;
  }
  WAT_UNROLL
  for (int j = 0; j < kPacket<T>; ++j) {
    if (first + j < line.size) line.data[(first + j) * line.step] = from_float<T>(values[j]);
  }
}

}  // namespace wat
