// Linear, compiled three times: what both passes share, then the forward pass; the backward pass is in
// linear_backward.h. Include after target_*.h, see isa.h.
//
// SW exists only as a panel in the second-level cache: a block of it is made (weight read through the grid, times noise
// that is generated on the spot), multiplied with all rows that use it, and forgotten.
#pragma once

#include "linear.h"
#include "linear_tile.h"
#include "noise.h"
#include "threads.h"

namespace wat::WAT_ISA {

// Depth of one panel: products are summed in registers this far, then added to memory. With few rows the weight's
// journey from memory is what costs, and whole pages of it are taken at a time.
constexpr int kMostDepth = 1024;
constexpr int kFewRows = 64;
static inline int64_t forward_depth(const LinearProblem& p) { return p.chunk <= kFewRows ? kMostDepth : 256; }

constexpr int kForwardRow = kMostDepth + 16;  // stride of packed rows; a power of two would share few cache sets

static inline NoiseStream linear_noise(const LinearProblem& p, int64_t shadow) {
  return noise_stream(p.noise, p.amount, p.key, shadow);
}

static inline float linear_gain(const LinearProblem& p, int64_t o) {
  return p.gain == nullptr ? 1.0f : p.gain[p.gain_count == 1 ? 0 : o];
}

// One axis of the matrix under a grid draw: SW index j in [low, high) shows weight index source(j), others show nothing.
struct GridAxis {
  int64_t size, shift, low, high;
  bool flip;

  GridAxis(int64_t size, int64_t shift, bool flip) : size(size), shift(shift), flip(flip) {
    const int64_t first = max64(0, shift), last = min64(size, size + shift);  // before the flip
    low = flip ? size - last : first;
    high = flip ? size - first : last;
    if (high <= low) low = high = 0;
  }
  int64_t source(int64_t j) const { return (flip ? size - 1 - j : j) - shift; }
};

// n elements of the weight as SW index (o, i..i+n) sees them, without noise. `buffer` is used where they cannot be read
// in place. (o, i) and (o, i + n - 1) must be inside.
static inline const float* grid_row(const LinearProblem& p, const GridAxis& out, const GridAxis& in, int64_t o, int64_t i,
                                    int64_t n, float* buffer) {
  const int64_t first = in.flip ? in.source(i + n - 1) : in.source(i);
  const float* row = as_float(p.weight, p.bf16, out.source(o) * p.weight_row + first, n, buffer);
  if (!in.flip) return row;
  if (row == buffer) {  // in place
    for (int64_t a = 0, b = n - 1; a < b; ++a, --b) {
      const float t = buffer[a];
      buffer[a] = buffer[b];
      buffer[b] = t;
    }
  } else {
    reverse(row, n, buffer);
  }
  return buffer;
}

// Brings the next run of the weight closer while noise for this one is made: a run is a page or less, and the
// processor's own prefetcher starts again in each.
static inline void prefetch_row(const LinearProblem& p, const GridAxis& out, const GridAxis& in, int64_t o, int64_t i, int64_t n) {
  if (o >= out.high) return;
  const int64_t size = p.bf16 ? 2 : 4;
  const char* row = static_cast<const char*>(p.weight) +
                    (out.source(o) * p.weight_row + (in.flip ? in.source(i + n - 1) : in.source(i))) * size;
  for (int64_t b = 0; b < n * size; b += 64) __builtin_prefetch(row + b);
}

static inline void store_as(void* data, bool bf16, int64_t first, const float* source, int64_t n) {
  if (!bf16) {
    memcpy(static_cast<float*>(data) + first, source, n * sizeof(float));
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(data) + first;
  int64_t j = 0;
  for (; j + Vec::width <= n; j += Vec::width) store_vec(to + j, Vec::load(source + j));
  for (; j < n; ++j) to[j] = to_bf16(source[j]);
}

constexpr int64_t kForwardCols = 256;      // most output columns of a task
constexpr int64_t kForwardPanel = kForwardCols * 256;
constexpr int64_t kForwardRowsBf16 = 512;  // most rows of a task where sums need fp32 scratch

struct ForwardScratch {
  float* panel;  // [columns / kTileCols][depth][kTileCols]
  float* rows;   // [Vec::width + 1][kForwardRow] of SW before the transpose
  float* a;      // [kTileRows][kForwardRow] of x
  float* sums;   // [kForwardRowsBf16][kForwardCols], bf16 only

  static size_t floats(bool bf16) {
    return kForwardPanel + (Vec::width + 1 + kTileRows) * kForwardRow + (bf16 ? kForwardRowsBf16 * kForwardCols : 0);
  }
  explicit ForwardScratch(float* s)
      : panel(s), rows(s + kForwardPanel), a(rows + (Vec::width + 1) * kForwardRow), sums(a + kTileRows * kForwardRow) {}
};

// SW^T for output columns [o, o + cols) and inputs [i, i + depth) into scratch.panel, whose depth is `block`.
static inline void pack_forward_panel(const LinearProblem& p, const NoiseStream& noise, const GridAxis& out, const GridAxis& in,
                                      int64_t o, int64_t cols, int64_t i, int64_t depth, int64_t block, const ForwardScratch& s) {
  constexpr int W = Vec::width;
  float* buffer = s.rows + W * kForwardRow;
  for (int64_t c = 0; c < cols; c += W) {
    for (int j = 0; j < W; ++j) {
      float* row = s.rows + j * kForwardRow;
      if (c + j >= cols) {
        memset(row, 0, depth * sizeof(float));
        continue;
      }
      prefetch_row(p, out, in, o + c + j + 1, i, depth);
      const float* weight = grid_row(p, out, in, o + c + j, i, depth, buffer);
      noise_multiply(noise, static_cast<uint64_t>((o + c + j) * p.in + i), depth, weight, row);
      to_cells(row, depth);
    }
    float* panel = s.panel + c / kTileCols * kTileCols * block + c % kTileCols;
    for (int64_t k = 0; k < cells(depth); k += W) transpose_block(s.rows + k, kForwardRow, panel + k * kTileCols, kTileCols);
  }
}

// y[r0..r1, o0..o1) of one shadow
static inline void forward_block(const LinearProblem& p, int64_t shadow, int64_t r0, int64_t r1, int64_t o0, int64_t o1,
                                 const ForwardScratch& s) {
  const GridDraw draw = grid_draw(p, shadow);
  const GridAxis out(p.out, draw.shift_out, draw.flip_out), in(p.in, draw.shift_in, draw.flip_in);
  const NoiseStream noise = linear_noise(p, shadow);
  const int64_t block = forward_depth(p);
  const bool empty = in.low == in.high;
  const int64_t first = empty ? o0 : min64(max64(o0, out.low), o1);
  const int64_t last = empty ? o0 : max64(first, min64(o1, out.high));
  const int64_t cols = last - first;
  float* sums = p.bf16 ? s.sums : static_cast<float*>(p.y) + r0 * p.y_row + first;
  const int64_t sums_row = p.bf16 ? kForwardCols : p.y_row;

  for (int64_t i = in.low; i < in.high && cols > 0; i += block) {
    const int64_t depth = min64(block, in.high - i);
    pack_forward_panel(p, noise, out, in, first, cols, i, depth, block, s);
    for_each_tile(r1 - r0, [&](int64_t row, int rows) {
      for (int m = 0; m < rows; ++m) copy_as_cells(p.x, p.bf16, (r0 + row + m) * p.x_row + i, depth, s.a + m * kForwardRow);
      const TileFunction multiply = tile_of<kForwardRow, 1>(rows);
      for (int64_t c = 0; c < cols; c += kTileCols) {
        multiply(cells(depth), s.a, s.panel + c * block, sums + row * sums_row + c, sums_row,
                 static_cast<int>(min64(kTileCols, cols - c)), i > in.low);
      }
    });
  }

  // gain and bias; columns that the grid moved outside are bias alone
  if (!p.bf16 && p.gain == nullptr && p.bias == nullptr && cols == o1 - o0) return;
  float line[kForwardCols];
  for (int64_t r = r0; r < r1; ++r) {
    const float* sum = sums + (r - r0) * sums_row - first;
    for (int64_t o = o0; o < o1; ++o) {
      const float value = o >= first && o < last ? sum[o] : 0.0f;
      line[o - o0] = (p.gain == nullptr ? value : linear_gain(p, o) * value) + (p.bias == nullptr ? 0.0f : p.bias[o]);
    }
    store_as(p.y, p.bf16, r * p.y_row + o0, line, o1 - o0);
  }
}

bool linear_forward(const LinearProblem& p) {
  if (p.rows == 0 || p.out == 0) return true;
  // Neither cut changes a bit of the result: every element of y is summed over the same steps of depth.
  const int workers = num_workers();
  int64_t cols = kForwardPanel / forward_depth(p);
  while (cols > kTileCols && p.shadows * ((p.out + cols - 1) / cols) < 4 * workers) cols /= 2;
  const int64_t col_blocks = (p.out + cols - 1) / cols;
  int64_t rows = p.bf16 ? min64(kForwardRowsBf16, p.chunk) : p.chunk;
  while (workers > 1 && rows > 256 && p.shadows * col_blocks * ((p.chunk + rows - 1) / rows) < 2 * workers) rows = (rows + 1) / 2;
  const int64_t row_blocks = (p.chunk + rows - 1) / rows;

  const size_t floats = ForwardScratch::floats(p.bf16);
  const int64_t tasks = p.shadows * row_blocks * col_blocks;
  const int used = static_cast<int>(min64(workers, tasks));
  float* memory = static_cast<float*>(scratch(used * floats * sizeof(float)));
  if (memory == nullptr) return false;
  auto task = [&](int worker, int64_t t) {
    const int64_t shadow = t / (row_blocks * col_blocks), block = t % (row_blocks * col_blocks);
    const int64_t r0 = block / col_blocks * rows, o0 = block % col_blocks * cols;
    forward_block(p, shadow, shadow * p.chunk + r0, shadow * p.chunk + min64(r0 + rows, p.chunk), o0,
                  min64(o0 + cols, p.out), ForwardScratch(memory + worker * floats));
  };
  for_each_task(tasks, used, task);
  return true;
}

}  // namespace wat::WAT_ISA
