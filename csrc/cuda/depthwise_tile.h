// Tiles of an image between device memory and shared memory, in 16-byte copies wherever memory allows it.
//
// channels_last: a run is the block's channels of one pixel. Pixels outside the image are filled with zeros.
// contiguous: a run is a band of rows of one plane, or all planes of the tile where a tile is whole planes. It lies in
// shared memory at the same offset modulo 16 as in device memory, so that aligned copies serve planes of any size; rows
// and columns outside the image are not part of it, a reader asks for the position first.
#pragma once

#include "depthwise_table.h"

namespace wat {

// A staged tile of one image: what it covers.
struct DepthwiseTile {
  int64_t n;
  int32_t row, column;  // of the image, may lie before its first
};

// Tile number `w` of the work: where it begins in the result.
WAT_DEVICE DepthwiseTile result_tile(const DepthwiseProblem& p, int64_t w) {
  const int64_t tiles = static_cast<int64_t>(p.tiles_h) * p.tiles_w;
  const int64_t n = w / tiles;
  const int32_t tile = static_cast<int32_t>(w - n * tiles);
  const int32_t th = tile / p.tiles_w;
  return {n, th * p.tile_rows, (tile - th * p.tiles_w) * p.tile_columns};
}

// Tiles begin at multiples of the number of classes, so position j of every class is a multiple of it away.
WAT_DEVICE int32_t source_begin(const DepthwiseAxis& axis, int32_t result_begin) {
  return axis.lowest + axis.source_step * axis.S * (result_begin / axis.classes);
}

WAT_DEVICE DepthwiseTile source_tile(const DepthwiseProblem& p, const DepthwiseTile& result) {
  return {result.n, source_begin(p.vertical, result.row), source_begin(p.horizontal, result.column)};
}

// Contiguous: the rows of the image that a tile has.
struct RowRange {
  int32_t first, count;
};

WAT_DEVICE RowRange row_range(const DepthwiseImage& image, const DepthwiseTile& tile) {
  const int32_t first = tile.row < 0 ? 0 : tile.row;
  const int32_t end = tile.row + image.rows < image.height ? tile.row + image.rows : image.height;
  return {first, end > first ? end - first : 0};
}

// Contiguous: the address of the tile's first element in device memory.
WAT_DEVICE char* run_address(const DepthwiseProblem& p, const DepthwiseImage& image, const DepthwiseBlock& block,
                             const DepthwiseTile& tile) {
  const int64_t element = tile.n * image.stride_n + block.first_channel * image.stride_c +
                          static_cast<int64_t>(row_range(image, tile).first) * image.width;
  return image.data + element * p.element;
}

WAT_DEVICE int32_t misalignment(const char* address) { return static_cast<int32_t>(reinterpret_cast<uintptr_t>(address) & 15); }

// f(global address, shared offset, whether these 16 bytes are wanted whole, first byte, end byte) for each 16-byte chunk of
// the runs of a contiguous tile.
template <class F>
WAT_DEVICE void for_each_chunk(const DepthwiseProblem& p, const DepthwiseImage& image, const DepthwiseBlock& block,
                               const DepthwiseTile& tile, int thread, const F& f) {
  const RowRange rows = row_range(image, tile);
  const int64_t plane = image.stride_c * p.element;
  const int32_t runs = image.whole ? 1 : block.channels;
  const int64_t length = image.whole ? plane * block.channels : static_cast<int64_t>(rows.count) * image.width * p.element;
  char* const first = run_address(p, image, block, tile);
  const int32_t shift = misalignment(first);
  for (int32_t i = thread; i < runs * image.chunks; i += kDepthwiseThreads) {
    const int32_t run = divide(i, image.by_chunks), chunk = i - run * image.chunks;
    char* const start = first + run * plane;
    const int32_t before = misalignment(start);  // chunk 0 begins this many bytes before the run
    const int64_t from = static_cast<int64_t>(chunk) * 16 - before;
    if (from >= length) continue;
    const int32_t low = from < 0 ? before : 0;
    const int32_t high = from + 16 > length ? static_cast<int32_t>(length - from) : 16;
    f(start + from, static_cast<int32_t>(shift + run * image.pitch + from), low, high);
  }
}

// Copies a tile of `image` to shared memory at `to`; the copies of 16 bytes are complete after a wait.
template <bool kLast>
WAT_DEVICE void stage(const DepthwiseProblem& p, const DepthwiseImage& image, const DepthwiseBlock& block,
                      const DepthwiseTile& tile, char* to, int thread) {
  if constexpr (!kLast) {
    for_each_chunk(p, image, block, tile, thread, [&](const char* from, int32_t at, int32_t low, int32_t high) {
      if (low == 0 && high == 16) {
        copy16(to + at, from, true);
      } else {
        for (int32_t b = low; b < high; b += p.element) copy_number(to + at + b, from + b, p.element);
      }
    });
    return;
  }
  const int32_t step = image.aligned ? 16 : p.element;
  const int32_t valid = block.channels * p.element;
  const char* const base = image.data + (tile.n * image.stride_n + block.first_channel) * p.element;
  for (int32_t i = thread; i < image.rows * image.columns * image.chunks; i += kDepthwiseThreads) {
    const int32_t pixel = divide(i, image.by_chunks), chunk = i - pixel * image.chunks;
    const int32_t r = divide(pixel, image.by_columns), s = pixel - r * image.columns;
    const int32_t row = tile.row + r, column = tile.column + s;
    const bool inside = row >= 0 && row < image.height && column >= 0 && column < image.width && chunk * step < valid;
    const char* const from =
        inside ? base + (row * image.stride_h + column * image.stride_w) * p.element + chunk * step : image.data;
    char* const target = to + pixel * image.pitch + chunk * step;
    if (image.aligned) {
      copy16(target, from, inside);
    } else if (inside) {
      copy_number(target, from, p.element);
    } else {
      write_number(target, 0, p.scalar, 0.0f);
    }
  }
}

// Copies a finished tile of the result from shared memory at `from` to where it belongs.
template <bool kLast>
WAT_DEVICE void unstage(const DepthwiseProblem& p, const DepthwiseImage& image, const DepthwiseBlock& block,
                        const DepthwiseTile& tile, const char* from, int thread) {
  if constexpr (!kLast) {
    for_each_chunk(p, image, block, tile, thread, [&](char* target, int32_t at, int32_t low, int32_t high) {
      if (low == 0 && high == 16) {
        store16(target, from + at);
      } else {
        for (int32_t b = low; b < high; b += p.element) copy_number(target + b, from + at + b, p.element);
      }
    });
    return;
  }
  const int32_t step = image.aligned ? 16 : p.element;
  const int32_t valid = block.channels * p.element;
  char* const base = image.data + (tile.n * image.stride_n + block.first_channel) * p.element;
  for (int32_t i = thread; i < image.rows * image.columns * image.chunks; i += kDepthwiseThreads) {
    const int32_t pixel = divide(i, image.by_chunks), chunk = i - pixel * image.chunks;
    const int32_t r = divide(pixel, image.by_columns), s = pixel - r * image.columns;
    const int32_t row = tile.row + r, column = tile.column + s;
    if (row >= image.height || column >= image.width || chunk * step >= valid) continue;
    char* const target = base + (row * image.stride_h + column * image.stride_w) * p.element + chunk * step;
    const char* const source = from + pixel * image.pitch + chunk * step;
    if (image.aligned) {
      store16(target, source);
    } else {
      copy_number(target, source, p.element);
    }
  }
}

// Reads two neighbouring channels of a staged tile; positions count from the tile's beginning. kElement is 0 where the size
// of an element is known at run time only: contiguous images, which are read element by element anyway.
template <int kElement, bool kLast>
struct TileReader {
  const char* start;  // the pair's first channel at the tile's first position
  int32_t row_bytes, column_bytes;
  int32_t second;     // contiguous: bytes to the other channel
  int32_t row_low, row_high, column_low, column_high;  // contiguous: positions that exist
  bool brain;         // bf16 and not fp16

  WAT_DEVICE_MEMBER TileReader(const DepthwiseProblem& p, const DepthwiseImage& image, const DepthwiseBlock& block,
                        const DepthwiseTile& tile, const char* tile_memory, int32_t pair)
      : brain(p.scalar == Scalar::kBFloat16) {
    if constexpr (kLast) {
      start = tile_memory + pair * 2 * kElement;
      column_bytes = image.pitch;
      row_bytes = image.columns * image.pitch;
    } else {
      const RowRange rows = row_range(image, tile);
      row_bytes = image.width * p.element;
      column_bytes = p.element;
      start = tile_memory + misalignment(run_address(p, image, block, tile)) + 2 * pair * image.pitch +
              (tile.row - rows.first) * row_bytes + tile.column * p.element;
      second = 2 * pair + 1 < block.channels ? image.pitch : 0;
      row_low = rows.first - tile.row;
      row_high = row_low + rows.count;
      column_low = -tile.column;
      column_high = image.width - tile.column;
    }
  }

  // values[i] = the pair at (row, column + i * step)
  template <int kCount>
  WAT_DEVICE_MEMBER void read(int32_t row, int32_t column, int32_t step, float (&values)[kCount][2]) const {
    const char* const at = start + row * row_bytes + column * column_bytes;
    const int32_t bytes = step * column_bytes;
    if constexpr (kLast && kElement == 4) {
      WAT_UNROLL
      for (int i = 0; i < kCount; ++i) {
        const float* const from = reinterpret_cast<const float*>(at + i * bytes);
#if defined(__CUDACC__)
        const float2 both = *reinterpret_cast<const float2*>(from);
        values[i][0] = both.x, values[i][1] = both.y;
#else
        values[i][0] = from[0], values[i][1] = from[1];
#endif
      }
    } else if constexpr (kLast) {
      uint32_t bits[kCount];
      WAT_UNROLL
      for (int i = 0; i < kCount; ++i) bits[i] = *reinterpret_cast<const uint32_t*>(at + i * bytes);
      convert(bits, values);
    } else {
      const bool row_exists = row >= row_low && row < row_high;
      const auto exists = [&](int i) {
        const int32_t position = column + i * step;
        return row_exists && position >= column_low && position < column_high;
      };
      if (column_bytes == 4) {
        WAT_UNROLL
        for (int i = 0; i < kCount; ++i) {
          values[i][0] = exists(i) ? *reinterpret_cast<const float*>(at + i * bytes) : 0.0f;
          values[i][1] = exists(i) ? *reinterpret_cast<const float*>(at + i * bytes + second) : 0.0f;
        }
      } else {
        uint32_t bits[kCount];
        WAT_UNROLL
        for (int i = 0; i < kCount; ++i) {
          bits[i] = 0;
          if (exists(i)) {
            bits[i] = *reinterpret_cast<const uint16_t*>(at + i * bytes) |
                      static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(at + i * bytes + second)) << 16;
          }
        }
        convert(bits, values);
      }
    }
  }

  template <int kCount>
  WAT_DEVICE_MEMBER void convert(const uint32_t (&bits)[kCount], float (&values)[kCount][2]) const {
    if (brain) {
      WAT_UNROLL
      for (int i = 0; i < kCount; ++i) {
        values[i][0] = float_of_bits(bits[i] << 16);
        values[i][1] = float_of_bits(bits[i] & 0xFFFF0000u);
      }
    } else {
      WAT_UNROLL
      for (int i = 0; i < kCount; ++i) {
        values[i][0] = to_float(Half{static_cast<uint16_t>(bits[i])});
        values[i][1] = to_float(Half{static_cast<uint16_t>(bits[i] >> 16)});
      }
    }
  }
};

}  // namespace wat
