// The register tiles of the dense convolution. Include after target_*.h.
//
// A tile is R rows by V vectors of accumulators. Each step loads V vectors of one operand and broadcasts R numbers of
// the other: with AVX-512 14 x 2 of the 32 registers accumulate, 16 loads feed 28 multiply-adds.
#pragma once

#include "operand.h"

namespace wat::WAT_ISA {

constexpr int kTileRows = Vec::width == 16 ? 14 : 6;  // 16 registers hold 6 x 2 accumulators and the operands
constexpr int kTileVectors = 2;
constexpr int kLanes = kTileVectors * Vec::width;     // channels of one tile

// One tap of a gather tile: its panel of cells (cells(depth), lanes) and where its channels lie relative to a pixel's origin.
struct TapStep {
  const float* panel;
  int64_t offset;
};

// What becomes of a gather tile: destination = scale * sum + bias, or a partial sum when the depth comes in parts.
struct TileOutput {
  const float* scale;  // (lanes,) or nullptr
  const float* bias;   // (lanes,) or nullptr
  float* partial;      // (R, lanes) or nullptr
  bool first, last;    // first: the sum starts at zero; last: it goes to the destination
  int lanes;           // lanes to store
};

// One step: a cell of each row times a line of a panel. `odd`: of half a cell, the last of an odd depth.
template <int R, int V, bool odd, class T>
WAT_INLINE void gather_step(const T* const* row, int64_t k, const float* panel, Vec (&sum)[R][V]) {
  Vec weight[V];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) weight[v] = Vec::load(panel + v * Vec::width);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Vec value = spread<odd>(row[r] + k);
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[r][v] = multiply_cells(value, weight[v], sum[r][v]);
  }
}

// sum[r][lane] = over taps, over k < depth: source[r][tap.offset + k] * tap.panel[k][lane]
template <int R, int V, class T>
static __attribute__((noinline)) void gather_tile(const T* const* sources, T* const* destinations, const TapStep* taps,
                                                  int64_t tap_count, int64_t depth, const TileOutput& out) {
  Vec sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      sum[r][v] = out.first ? Vec::zero() : Vec::load(out.partial + (r * V + v) * Vec::width);
    }
  }
  for (int64_t tap = 0; tap < tap_count; ++tap) {
    const float* panel = taps[tap].panel;
    const T* row[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) row[r] = sources[r] + taps[tap].offset;
    int64_t k = 0;
    for (; k + kCell <= depth; k += kCell, panel += V * Vec::width) {
      gather_step<R, V, false>(row, k, panel, sum);
    }
    if constexpr (kCell > 1) {
      if (k < depth) gather_step<R, V, true>(row, k, panel, sum);
    }
  }
  if (!out.last) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v].store(out.partial + (r * V + v) * Vec::width);
    }
    return;
  }
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const int at = v * Vec::width;
    const int lanes = out.lanes - at;
    const Vec scale = out.scale ? Vec::load(out.scale + at) : Vec::set(1.0f);
    const Vec bias = out.bias ? Vec::load(out.bias + at) : Vec::zero();
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      Vec value = sum[r][v];
      if (out.scale) value = value * scale;
      if (out.bias) value = value + bias;
      if (lanes >= Vec::width) {
        store_vec(destinations[r] + at, value);
      } else if (lanes > 0) {
        store_vec(destinations[r] + at, value, lanes);
      }
    }
  }
}

// One pixel of an outer-product tile: its packed dy row and its x channels.
struct PixelPair {
  int64_t dy, x;
};

// sum[r][lane] (+)= over pixels: x[pixel.x + r] * dy[pixel.dy + lane]. These pixels are added up before they are added to
// what is there: one running sum over all pixels would lose digits of each.
template <int R, int V, class T>
static __attribute__((noinline)) void outer_tile(const T* x, const float* dy, const PixelPair* pixels, int64_t count,
                                                 float* sums, int64_t sums_stride, bool first) {
  Vec sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      sum[r][v] = Vec::zero();
    }
  }
  for (int64_t q = 0; q < count; ++q) {
    const T* row = x + pixels[q].x;
    const float* gradient = dy + pixels[q].dy;
    Vec g[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) g[v] = Vec::load(gradient + v * Vec::width);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec value = spread_cell(row + r);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] = multiply_cells(value, g[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      float* to = sums + r * sums_stride + v * Vec::width;
      (first ? sum[r][v] : Vec::load(to) + sum[r][v]).store(to);
    }
  }
}

template <class T>
using GatherTile = void (*)(const T* const*, T* const*, const TapStep*, int64_t, int64_t, const TileOutput&);
template <class T>
using OuterTile = void (*)(const T*, const float*, const PixelPair*, int64_t, float*, int64_t, bool);

// The tile of `rows` rows, 1 <= rows <= kTileRows, and `vectors` vectors.
template <class T, int R = kTileRows>
static GatherTile<T> gather_tile_of(int rows, int vectors) {
  if (rows == R) return vectors == 1 ? gather_tile<R, 1, T> : gather_tile<R, kTileVectors, T>;
  if constexpr (R > 1) return gather_tile_of<T, R - 1>(rows, vectors);
  return nullptr;
}

template <class T, int R = kTileRows>
static OuterTile<T> outer_tile_of(int rows, int vectors) {
  if (rows == R) return vectors == 1 ? outer_tile<R, 1, T> : outer_tile<R, kTileVectors, T>;
  if constexpr (R > 1) return outer_tile_of<T, R - 1>(rows, vectors);
  return nullptr;
}

}  // namespace wat::WAT_ISA
