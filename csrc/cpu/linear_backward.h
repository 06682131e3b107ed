// The backward pass of linear: dx = gain * dy SW and dweight = gain * (dy^T x) * eps in one walk over the weight, so that
// the noise of a block is generated once for both. Include after linear_kernels.h.
//
// A task owns a block of columns of the weight, and with it the columns of dx that they reach: no two tasks add to the
// same number, and each adds in the same order for any number of threads.
#pragma once

#include "linear_kernels.h"

namespace wat::WAT_ISA {

constexpr int64_t kBlockCols = 128;        // most columns of a block of weight
constexpr int64_t kBlockRows = kDepth;     // most rows of a block of weight
constexpr int64_t kChunkRows = 256;        // rows of x and dy multiplied at a time
constexpr int64_t kDxRowsBf16 = 1024;      // most rows of a task where dx needs fp32 scratch

struct BackwardScratch {
  float* sw;      // [columns / kTileCols][kBlockRows][kTileCols], times gain
  float* eps;     // [kBlockRows][kBlockCols]
  float* dsw;     // [kBlockRows][kBlockCols]: dy^T x of the shadow
  float* sum;     // [kBlockRows][kBlockCols]: gain * dsw * eps over shadows, in the weight's own order
  float* x;       // [columns / kTileCols][kChunkRows][kTileCols]
  float* dy;      // [kChunkRows][kRow]
  float* line;    // [2][kBlockCols]
  float* dx;      // [kDxRowsBf16][kBlockCols], bf16 only

  static constexpr size_t kBlock = kBlockRows * kBlockCols;
  static size_t floats(bool bf16) {
    return 4 * kBlock + kChunkRows * kBlockCols + kChunkRows * kRow + 2 * kBlockCols +
           (bf16 ? kDxRowsBf16 * kBlockCols : 0);
  }
  explicit BackwardScratch(float* s)
      : sw(s), eps(sw + kBlock), dsw(eps + kBlock), sum(dsw + kBlock), x(sum + kBlock), dy(x + kChunkRows * kBlockCols),
        line(dy + kChunkRows * kRow), dx(line + 2 * kBlockCols) {}
};

// Where indices [first, last) of the weight lie in SW: [low, low + n), shown in reverse order under a flip.
struct GridImage {
  int64_t low, n;
  int64_t weight_low;  // the smallest weight index that is shown, minus `first`

  GridImage(const GridAxis& axis, int64_t first, int64_t last) {
    const int64_t a = max64(first, -axis.shift), b = min64(last, axis.size - axis.shift);
    n = max64(0, b - a);
    low = axis.flip ? axis.size - axis.shift - b : a + axis.shift;
    weight_low = a - first;
  }
};

// What a task computes: weight rows [p0, p1) x columns [q0, q1), rows [r0, r1) of x and dy.
struct BackwardTask {
  int64_t p0, p1, q0, q1, r0, r1;
  bool dx, dweight;
};

// eps, and SW times gain, of the block `rows` x `cols` of SW
static inline void make_block(const LinearProblem& p, const NoiseStream& noise, const GridAxis& out, const GridAxis& in,
                              const GridImage& rows, const GridImage& cols, bool want_sw, const BackwardScratch& s) {
  constexpr int W = Vec::width;
  for (int64_t j = 0; j < rows.n; ++j) {
    const int64_t o = rows.low + j;
    float* eps = s.eps + j * kBlockCols;
    noise_fill(noise, static_cast<uint64_t>(o * p.in + cols.low), cols.n, eps);
    for (int64_t i = cols.n; i % kTileCols != 0; ++i) eps[i] = 0.0f;
    if (!want_sw) continue;
    const float* weight = grid_row(p, out, in, o, cols.low, cols.n, s.line);
    const Vec gain = Vec::set(linear_gain(p, o));
    float* to = s.sw + j * kTileCols;
    for (int64_t i = 0; i < cols.n; i += W) {
      const int64_t left = cols.n - i;
      const Vec w = left < W ? Vec::load(weight + i, static_cast<int>(left)) : Vec::load(weight + i);
      (w * Vec::load(eps + i) * gain).store(to + i / kTileCols * kTileCols * kBlockRows + i % kTileCols);
    }
    if ((cols.n + W - 1) / W % 2 == 1) {
      const int64_t i = (cols.n + W - 1) / W * W;
      Vec::zero().store(to + i / kTileCols * kTileCols * kBlockRows + i % kTileCols);
    }
  }
}

static inline void pack_x(const LinearProblem& p, int64_t r0, int64_t rows, int64_t i, int64_t n, const BackwardScratch& s) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = as_float(p.x, p.bf16, (r0 + r) * p.x_row + i, n, s.line);
    for (int64_t c = 0; c < n; c += kTileCols) {
      float* to = s.x + c * kChunkRows + r * kTileCols;
      const int64_t count = min64(kTileCols, n - c);
      if (count == kTileCols) {
        Vec::load(x + c).store(to);
        Vec::load(x + c + Vec::width).store(to + Vec::width);
      } else {
        for (int64_t j = 0; j < kTileCols; ++j) to[j] = j < count ? x[c + j] : 0.0f;
      }
    }
  }
}

// dsw * eps of one shadow goes to dweight, or into the sum where there are more shadows or a grid.
static inline void finish_shadow(const LinearProblem& p, const BackwardTask& t, const GridAxis& out, const GridAxis& in,
                                 const GridImage& rows, const GridImage& cols, bool direct, const BackwardScratch& s) {
  constexpr int W = Vec::width;
  for (int64_t j = 0; j < rows.n; ++j) {
    const int64_t o = rows.low + j;
    float *g = s.dsw + j * kBlockCols, *eps = s.eps + j * kBlockCols;
    const float* weight = p.dgain_partial == nullptr ? nullptr : grid_row(p, out, in, o, cols.low, cols.n, s.line);
    const Vec gain = Vec::set(linear_gain(p, o));
    Vec dot = Vec::zero();
    float* target = direct && !p.bf16 ? static_cast<float*>(p.dweight) + o * p.dweight_row + cols.low : g;
    for (int64_t i = 0; i < cols.n; i += W) {
      const int left = static_cast<int>(min64(W, cols.n - i));
      const Vec product = Vec::load(g + i) * Vec::load(eps + i);
      if (weight != nullptr) dot = fma(left < W ? Vec::load(weight + i, left) : Vec::load(weight + i), product, dot);
      if (left < W) {
        (gain * product).store(target + i, left);
      } else {
        (gain * product).store(target + i);
      }
    }
    if (weight != nullptr) p.dgain_partial[t.q0 / linear_column_block(p) * p.out + o] += sum(dot);
    if (direct) {
      if (p.bf16) store_as(p.dweight, true, o * p.dweight_row + cols.low, g, cols.n);
      continue;
    }
    float* into = s.sum + (out.flip ? rows.weight_low + rows.n - 1 - j : rows.weight_low + j) * kBlockCols + cols.weight_low;
    if (in.flip) {
      for (int64_t i = 0; i < cols.n; ++i) into[cols.n - 1 - i] += g[i];
    } else {
      for (int64_t i = 0; i < cols.n; ++i) into[i] += g[i];
    }
  }
}

static inline void backward_block(const LinearProblem& p, const BackwardTask& t, const BackwardScratch& s) {
  const bool direct = p.shadows == 1 && p.grid == nullptr;
  const int64_t first_shadow = p.chunk == 0 ? 0 : t.r0 / p.chunk;
  const int64_t last_shadow = p.chunk == 0 ? 0 : (t.r1 - 1) / p.chunk;
  int64_t packed_row = -1, packed_col = -1;  // what s.x holds
  if (t.dx && p.bf16) memset(s.dx, 0, (t.r1 - t.r0) * kBlockCols * sizeof(float));
  for (int64_t p0 = t.p0; p0 < t.p1; p0 += kBlockRows) {
    const int64_t p1 = min64(p0 + kBlockRows, t.p1);
    if (t.dweight && !direct) memset(s.sum, 0, (p1 - p0) * kBlockCols * sizeof(float));
    for (int64_t shadow = first_shadow; shadow <= last_shadow; ++shadow) {
      const GridDraw draw = grid_draw(p, shadow);
      const GridAxis out(p.out, draw.shift_out, draw.flip_out), in(p.in, draw.shift_in, draw.flip_in);
      const GridImage rows(out, p0, p1), cols(in, t.q0, t.q1);
      if (rows.n == 0 || cols.n == 0) continue;
      make_block(p, linear_noise(p, shadow), out, in, rows, cols, t.dx, s);
      const int64_t begin = max64(t.r0, shadow * p.chunk), end = min64(t.r1, (shadow + 1) * p.chunk);
      for (int64_t r = begin; r < end; r += kChunkRows) {
        const int64_t count = min64(kChunkRows, end - r);
        for (int64_t j = 0; j < count; ++j) {
          copy_as_float(p.dy, p.bf16, (r + j) * p.dy_row + rows.low, rows.n, s.dy + j * kRow);
        }
        if (t.dx) {
          float* dx = p.bf16 ? s.dx + (r - t.r0) * kBlockCols : static_cast<float*>(p.dx) + r * p.dx_row + cols.low;
          const int64_t dx_row = p.bf16 ? kBlockCols : p.dx_row;
          const bool add = p.bf16 || p.grid != nullptr || p0 > 0;
          for_each_tile(count, [&](int64_t row, int height) {
            const TileFunction multiply = tile_of<kRow, 1>(height);
            for (int64_t c = 0; c < cols.n; c += kTileCols) {
              multiply(rows.n, s.dy + row * kRow, s.sw + c * kBlockRows, dx + row * dx_row + c, dx_row,
                       static_cast<int>(min64(kTileCols, cols.n - c)), add);
            }
          });
        }
        if (t.dweight) {
          if (packed_row != r || packed_col != cols.low) pack_x(p, r, count, cols.low, cols.n, s);
          packed_row = r;
          packed_col = cols.low;
          for_each_tile(rows.n, [&](int64_t row, int height) {
            const TileFunction multiply = tile_of<1, kRow>(height);
            for (int64_t c = 0; c < cols.n; c += kTileCols) {
              multiply(count, s.dy + row, s.x + c * kChunkRows, s.dsw + row * kBlockCols + c, kBlockCols, kTileCols,
                       r > begin);
            }
          });
        }
      }
      if (t.dweight) finish_shadow(p, t, out, in, rows, cols, direct, s);
    }
    if (t.dweight && !direct) {
      for (int64_t q = p0; q < p1; ++q) {
        store_as(p.dweight, p.bf16, q * p.dweight_row + t.q0, s.sum + (q - p0) * kBlockCols, t.q1 - t.q0);
      }
    }
  }
  if (!t.dx || !p.bf16) return;
  for (int64_t r = t.r0; r < t.r1; ++r) {
    const GridDraw draw = grid_draw(p, r / p.chunk);
    const GridImage cols(GridAxis(p.in, draw.shift_in, draw.flip_in), t.q0, t.q1);
    store_as(p.dx, true, r * p.dx_row + cols.low, s.dx + (r - t.r0) * kBlockCols, cols.n);
  }
}

// dbias: sums over kChunkRows rows at a time
static inline void bias_block(const LinearProblem& p, int64_t o0, int64_t o1) {
  float total[kBlockCols] = {}, part[kBlockCols], line[kBlockCols];
  for (int64_t r0 = 0; r0 < p.rows; r0 += kChunkRows) {
    memset(part, 0, sizeof(part));
    for (int64_t r = r0; r < min64(r0 + kChunkRows, p.rows); ++r) {
      const float* dy = as_float(p.dy, p.bf16, r * p.dy_row + o0, o1 - o0, line);
      for (int64_t j = 0; j < o1 - o0; ++j) part[j] += dy[j];
    }
    for (int64_t j = 0; j < o1 - o0; ++j) total[j] += part[j];
  }
  memcpy(p.dbias + o0, total, (o1 - o0) * sizeof(float));
}

// Needs rows, in and out to be positive. dx must be zero beforehand where there is a grid, dgain_partial always.
bool linear_backward(const LinearProblem& p) {
  const int workers = num_workers();
  const int64_t cols = linear_column_block(p), col_blocks = linear_column_blocks(p);
  const bool dx = p.dx != nullptr, dweight = p.dweight != nullptr;

  // Both gradients in one walk where that leaves enough tasks; else they are separate tasks, and those of dx are cut by
  // rows and those of dweight by rows of the weight. The bits are the same.
  const bool fused = (workers == 1 || col_blocks >= 2 * workers) && !(p.bf16 && dx && p.rows > kDxRowsBf16);
  int64_t dx_rows = p.rows, dweight_rows = p.out;
  if (!fused) {
    if (p.bf16) dx_rows = min64(dx_rows, kDxRowsBf16);
    while (dx_rows > 128 && col_blocks * ((p.rows + dx_rows - 1) / dx_rows) < 2 * workers) dx_rows = (dx_rows + 1) / 2;
    // with a grid, shadows move rows of the weight, and tasks cut by them would add to the same dgain
    if (p.grid == nullptr) dweight_rows = min64(dweight_rows, kBlockRows);
  }
  const int64_t row_blocks = (p.rows + dx_rows - 1) / dx_rows;
  const int64_t weight_blocks = (p.out + dweight_rows - 1) / dweight_rows;
  const int64_t bias_tasks = p.dbias == nullptr ? 0 : (p.out + kBlockCols - 1) / kBlockCols;
  const int64_t dx_tasks = fused ? (dx || dweight ? col_blocks : 0) : dx ? col_blocks * row_blocks : 0;
  const int64_t dweight_tasks = fused || !dweight ? 0 : col_blocks * weight_blocks;
  const int64_t tasks = dx_tasks + dweight_tasks + bias_tasks;

  const size_t floats = BackwardScratch::floats(p.bf16);
  const int used = static_cast<int>(max64(1, min64(workers, tasks)));
  float* memory = static_cast<float*>(scratch(used * floats * sizeof(float)));
  if (memory == nullptr) return false;
  auto task = [&](int worker, int64_t t) {
    const BackwardScratch s(memory + worker * floats);
    if (t < dx_tasks) {
      const int64_t q0 = t % col_blocks * cols, r0 = t / col_blocks * dx_rows;
      backward_block(p, {0, p.out, q0, min64(q0 + cols, p.in), r0, min64(r0 + dx_rows, p.rows), dx, fused && dweight}, s);
    } else if (t < dx_tasks + dweight_tasks) {
      t -= dx_tasks;
      const int64_t q0 = t % col_blocks * cols, p0 = t / col_blocks * dweight_rows;
      backward_block(p, {p0, min64(p0 + dweight_rows, p.out), q0, min64(q0 + cols, p.in), 0, p.rows, false, true}, s);
    } else {
      const int64_t o0 = (t - dx_tasks - dweight_tasks) * kBlockCols;
      bias_block(p, o0, min64(o0 + kBlockCols, p.out));
    }
  };
  for_each_task(tasks, used, task);
  return true;
}

}  // namespace wat::WAT_ISA
