// The backward pass of linear: dx = gain * dy SW and dweight = gain * (dy^T x) * eps in one walk over the weight, so that
// the noise of a block is generated once for both. Include after linear_kernels.h.
//
// A task owns a block of columns of the weight, and with it the columns of dx that they reach: no two tasks add to the
// same number, and each adds in the same order for any number of threads.
#pragma once

#include "linear_kernels.h"

namespace wat::WAT_ISA {

constexpr int64_t kDxFloatsBf16 = 131072;  // fp32 scratch for dx of a task
constexpr int kBackwardRow = 256 + 16;  // stride of packed rows of dy; a power of two would share few cache sets

// How the weight is cut. The fewer the rows, the more the weight's journey from and to memory costs, and the more of a
// page is taken at a time. All but `cols` decide in which order numbers are added, so they follow from the shape alone.
struct BackwardCut {
  int64_t cols;    // most columns of a block of weight, a multiple of kTileCols
  int64_t rows;    // most rows of a block of weight, at most 256
  int64_t chunk;   // rows of x and dy multiplied at a time
  int64_t stride;  // of the rows of a block in scratch, >= cols

  BackwardCut(const LinearProblem& p, int workers) {
    rows = p.chunk <= kFewRows ? 32 : p.chunk <= 256 ? 64 : 256;
    chunk = p.chunk <= kFewRows ? kFewRows : 256;
    stride = 32768 / rows;
    cols = min64(stride, (p.in + kTileCols - 1) / kTileCols * kTileCols);
    if (p.dgain_partial != nullptr) {
      cols = linear_column_block(p);  // the unit of its sums
    } else {
      while (cols > 128 && (p.in + cols - 1) / cols < 2 * workers) cols = (cols / 2 + kTileCols - 1) / kTileCols * kTileCols;
    }
  }
};

struct BackwardScratch {
  float* sw;      // [columns / kTileCols][cells of rows of a block][kTileCols], times gain
  float* eps;     // [rows of a block][stride]
  float* dsw;     // [rows of a block][stride]: dy^T x of the shadow
  float* sum;     // [rows of a block][stride]: gain * dsw * eps over shadows, in the weight's own order
  float* x;       // [columns / kTileCols][cells of chunk][kTileCols]
  float* dy;      // [chunk][kBackwardRow / kCell], cells along a row, for dx
  float* dy_down;  // [cells of chunk][kBackwardRow], cells along a column, for dweight; the same where a cell is one number
  float* line;    // [stride]
  float* open;    // [stride]: a row of SW whose cells wait for the next one
  float* dx;      // [kDxFloatsBf16 / stride][stride], bf16 only

  static constexpr size_t kBlock = 32768;
  static size_t floats(const BackwardCut& cut, bool bf16) {
    return 4 * kBlock + cut.chunk * cut.stride + cut.chunk * kBackwardRow + 2 * cut.stride +
           (bf16 ? kDxFloatsBf16 : 0);
  }
  BackwardScratch(float* s, const BackwardCut& cut)
      : sw(s), eps(sw + kBlock), dsw(eps + kBlock), sum(dsw + kBlock), x(sum + kBlock), dy(x + cut.chunk * cut.stride),
        dy_down(kCell == 1 ? dy : dy + cut.chunk * kBackwardRow / kCell), line(dy + cut.chunk * kBackwardRow),
        open(line + cut.stride), dx(open + cut.stride) {}
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

// Where SW is rounded, one gain for all is not in it: it scales dx.
static inline bool scales_dx(const LinearProblem& p) { return kCell > 1 && p.gain_count == 1; }

// eps, and SW times gain, of the block `rows` x `cols` of SW
static inline void make_block(const LinearProblem& p, const NoiseStream& noise, const GridAxis& out, const GridAxis& in,
                              const GridImage& rows, const GridImage& cols, bool want_sw, const BackwardCut& cut, const BackwardScratch& s) {
  constexpr int W = Vec::width;
  for (int64_t j = 0; j < rows.n; ++j) {
    const int64_t o = rows.low + j;
    float* eps = s.eps + j * cut.stride;
    if (want_sw) prefetch_row(p, out, in, o, cols.low, cols.n);
    noise_fill(noise, static_cast<uint64_t>(o * p.in + cols.low), cols.n, eps);
    for (int64_t i = cols.n; i % kTileCols != 0; ++i) eps[i] = 0.0f;
    if (!want_sw) continue;
    const float* weight = grid_row(p, out, in, o, cols.low, cols.n, s.line);
    const Vec gain = Vec::set(scales_dx(p) ? 1.0f : linear_gain(p, o));
    const bool opens = j % kCell == 0, closes = j % kCell == kCell - 1 || j + 1 == rows.n;  // cells of SW
    float* to = s.sw + j / kCell * kTileCols;
    for (int64_t i = 0; i < cols.n; i += W) {
      const int64_t left = cols.n - i;
      const Vec w = left < W ? Vec::load(weight + i, static_cast<int>(left)) : Vec::load(weight + i);
      const Vec value = w * Vec::load(eps + i) * gain;
      if (opens && !closes) {
        value.store(s.open + i);
        continue;
      }
      const Vec numbers[] = {opens ? value : Vec::load(s.open + i), opens ? Vec::zero() : value};
      make_cells(numbers).store(to + i / kTileCols * kTileCols * cut.rows + i % kTileCols);
    }
    if ((cols.n + W - 1) / W % 2 == 1) {
      const int64_t i = (cols.n + W - 1) / W * W;
      Vec::zero().store(to + i / kTileCols * kTileCols * cut.rows + i % kTileCols);
    }
  }
}

#if defined(WAT_BF16_PAIRS)

static inline const uint16_t* row_of(const void* data, int64_t row, int64_t stride, int64_t first) {
  return static_cast<const uint16_t*>(data) + row * stride + first;
}

static inline void pack_x(const LinearProblem& p, int64_t r0, int64_t rows, int64_t i, int64_t n, const BackwardCut& cut, const BackwardScratch& s) {
  for (int64_t r = 0; r < rows; r += 2) {
    const uint16_t* x = row_of(p.x, r0 + r, p.x_row, i);
    const uint16_t* next = r + 1 < rows ? x + p.x_row : nullptr;
    for (int64_t c = 0; c < (n + kTileCols - 1) / kTileCols * kTileCols; c += Vec::width) {
      const int count = static_cast<int>(max64(0, min64(Vec::width, n - c)));
      make_cells(x + c, next ? next + c : nullptr, count)
          .store(s.x + c / kTileCols * kTileCols * cut.chunk + r / 2 * kTileCols + c % kTileCols);
    }
  }
}

// Columns o.. of `rows` rows of dy.
static inline void pack_dy(const LinearProblem& p, const BackwardTask& t, int64_t r0, int64_t rows, int64_t o, int64_t n, const BackwardScratch& s) {
  for (int64_t r = 0; t.dx && r < rows; ++r) {
    copy_cells(row_of(p.dy, r0 + r, p.dy_row, o), n, s.dy + r * (kBackwardRow / kCell));
  }
  for (int64_t r = 0; t.dweight && r < rows; r += 2) {
    const uint16_t* dy = row_of(p.dy, r0 + r, p.dy_row, o);
    const uint16_t* next = r + 1 < rows ? dy + p.dy_row : nullptr;
    for (int64_t c = 0; c < n; c += Vec::width) {
      const int count = static_cast<int>(min64(Vec::width, n - c));
      make_cells(dy + c, next ? next + c : nullptr, count).store(s.dy_down + r / 2 * kBackwardRow + c);
    }
  }
}

#else

static inline void pack_dy(const LinearProblem& p, const BackwardTask&, int64_t r0, int64_t rows, int64_t o, int64_t n, const BackwardScratch& s) {
  for (int64_t r = 0; r < rows; ++r) {
    copy_as_float(p.dy, p.bf16, (r0 + r) * p.dy_row + o, n, s.dy + r * kBackwardRow);
  }
}

static inline void pack_x(const LinearProblem& p, int64_t r0, int64_t rows, int64_t i, int64_t n, const BackwardCut& cut, const BackwardScratch& s) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = as_float(p.x, p.bf16, (r0 + r) * p.x_row + i, n, s.line);
    for (int64_t c = 0; c < n; c += kTileCols) {
      float* to = s.x + c * cut.chunk + r * kTileCols;
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

#endif

// dsw * eps of one shadow goes to dweight, or into the sum where there are more shadows or a grid.
static inline void finish_shadow(const LinearProblem& p, const BackwardTask& t, const GridAxis& out, const GridAxis& in,
                                 const GridImage& rows, const GridImage& cols, bool direct, const BackwardCut& cut, const BackwardScratch& s) {
  constexpr int W = Vec::width;
  for (int64_t j = 0; j < rows.n; ++j) {
    const int64_t o = rows.low + j;
    float *g = s.dsw + j * cut.stride, *eps = s.eps + j * cut.stride;
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
    float* into = s.sum + (out.flip ? rows.weight_low + rows.n - 1 - j : rows.weight_low + j) * cut.stride + cols.weight_low;
    if (in.flip) {
      for (int64_t i = 0; i < cols.n; ++i) into[cols.n - 1 - i] += g[i];
    } else {
      for (int64_t i = 0; i < cols.n; ++i) into[i] += g[i];
    }
  }
}

static inline void backward_block(const LinearProblem& p, const BackwardTask& t, const BackwardCut& cut, const BackwardScratch& s) {
  const bool direct = p.shadows == 1 && p.grid == nullptr;
  const int64_t first_shadow = p.chunk == 0 ? 0 : t.r0 / p.chunk;
  const int64_t last_shadow = p.chunk == 0 ? 0 : (t.r1 - 1) / p.chunk;
  int64_t packed_row = -1, packed_col = -1;  // what s.x holds
  if (t.dx && p.bf16) memset(s.dx, 0, (t.r1 - t.r0) * cut.stride * sizeof(float));
  for (int64_t p0 = t.p0; p0 < t.p1; p0 += cut.rows) {
    const int64_t p1 = min64(p0 + cut.rows, t.p1);
    if (t.dweight && !direct) memset(s.sum, 0, (p1 - p0) * cut.stride * sizeof(float));
    for (int64_t shadow = first_shadow; shadow <= last_shadow; ++shadow) {
      const GridDraw draw = grid_draw(p, shadow);
      const GridAxis out(p.out, draw.shift_out, draw.flip_out), in(p.in, draw.shift_in, draw.flip_in);
      const GridImage rows(out, p0, p1), cols(in, t.q0, t.q1);
      if (rows.n == 0 || cols.n == 0) continue;
      make_block(p, linear_noise(p, shadow), out, in, rows, cols, t.dx, cut, s);
      const int64_t begin = max64(t.r0, shadow * p.chunk), end = min64(t.r1, (shadow + 1) * p.chunk);
      for (int64_t r = begin; r < end; r += cut.chunk) {
        const int64_t count = min64(cut.chunk, end - r);
        pack_dy(p, t, r, count, rows.low, rows.n, s);
        if (t.dx) {
          float* dx = p.bf16 ? s.dx + (r - t.r0) * cut.stride : static_cast<float*>(p.dx) + r * p.dx_row + cols.low;
          const int64_t dx_row = p.bf16 ? cut.stride : p.dx_row;
          const bool add = p.bf16 || p.grid != nullptr || p0 > 0;
          for_each_tile(count, [&](int64_t row, int height) {
            const TileFunction multiply = tile_of<kBackwardRow / kCell, 1>(height);
            for (int64_t c = 0; c < cols.n; c += kTileCols) {
              multiply(cells(rows.n), s.dy + row * (kBackwardRow / kCell), s.sw + c * cut.rows, dx + row * dx_row + c, dx_row,
                       static_cast<int>(min64(kTileCols, cols.n - c)), add);
            }
          });
        }
        if (t.dweight) {
          if (packed_row != r || packed_col != cols.low) pack_x(p, r, count, cols.low, cols.n, cut, s);
          packed_row = r;
          packed_col = cols.low;
          for_each_tile(rows.n, [&](int64_t row, int height) {
            const TileFunction multiply = tile_of<1, kBackwardRow>(height);
            for (int64_t c = 0; c < cols.n; c += kTileCols) {
              multiply(cells(count), s.dy_down + row, s.x + c * cut.chunk, s.dsw + row * cut.stride + c, cut.stride, kTileCols,
                       r > begin);
            }
          });
        }
      }
      if (t.dweight) finish_shadow(p, t, out, in, rows, cols, direct, cut, s);
    }
    if (t.dweight && !direct) {
      for (int64_t q = p0; q < p1; ++q) {
        store_as(p.dweight, p.bf16, q * p.dweight_row + t.q0, s.sum + (q - p0) * cut.stride, t.q1 - t.q0);
      }
    }
  }
  if (!t.dx || !p.bf16) return;
  for (int64_t r = t.r0; r < t.r1; ++r) {
    const GridDraw draw = grid_draw(p, r / p.chunk);
    const GridImage cols(GridAxis(p.in, draw.shift_in, draw.flip_in), t.q0, t.q1);
    float* dx = s.dx + (r - t.r0) * cut.stride;
    if (scales_dx(p)) {
      for (int64_t i = 0; i < cols.n; ++i) dx[i] *= p.gain[0];
    }
    store_as(p.dx, true, r * p.dx_row + cols.low, dx, cols.n);
  }
}

// dbias: sums over 256 rows at a time
constexpr int64_t kBiasCols = 128;

static inline void bias_block(const LinearProblem& p, int64_t o0, int64_t o1) {
  double total[kBiasCols] = {};
  float part[kBiasCols], line[kBiasCols];
  for (int64_t r0 = 0; r0 < p.rows; r0 += 256) {
    memset(part, 0, sizeof(part));
    for (int64_t r = r0; r < min64(r0 + 256, p.rows); ++r) {
      const float* dy = as_float(p.dy, p.bf16, r * p.dy_row + o0, o1 - o0, line);
      for (int64_t j = 0; j < o1 - o0; ++j) part[j] += dy[j];
    }
    for (int64_t j = 0; j < o1 - o0; ++j) total[j] += part[j];
  }
  for (int64_t j = 0; j < o1 - o0; ++j) p.dbias[o0 + j] = static_cast<float>(total[j]);
}

// Needs rows, in and out to be positive. dx must be zero beforehand where there is a grid, dgain_partial always.
bool linear_backward(const LinearProblem& p) {
  const int workers = num_workers();
  const BackwardCut cut(p, workers);
  const int64_t cols = cut.cols, col_blocks = (p.in + cols - 1) / cols;
  const bool dx = p.dx != nullptr, dweight = p.dweight != nullptr;

  // Both gradients in one walk where that leaves enough tasks; else they are separate tasks, and those of dx are cut by
  // rows and those of dweight by rows of the weight. The bits are the same.
  const bool fused = (workers == 1 || col_blocks >= 2 * workers) && !(p.bf16 && dx && p.rows > kDxFloatsBf16 / cut.stride);
  int64_t dx_rows = p.rows, dweight_rows = p.out;
  if (!fused) {
    if (p.bf16) dx_rows = min64(dx_rows, kDxFloatsBf16 / cut.stride);
    while (dx_rows > 128 && col_blocks * ((p.rows + dx_rows - 1) / dx_rows) < 2 * workers) dx_rows = (dx_rows + 1) / 2;
    // with a grid, shadows move rows of the weight, and tasks cut by them would add to the same dgain
    if (p.grid == nullptr) dweight_rows = min64(dweight_rows, cut.rows);
  }
  const int64_t row_blocks = (p.rows + dx_rows - 1) / dx_rows;
  const int64_t weight_blocks = (p.out + dweight_rows - 1) / dweight_rows;
  const int64_t bias_tasks = p.dbias == nullptr ? 0 : (p.out + kBiasCols - 1) / kBiasCols;
  const int64_t dx_tasks = fused ? (dx || dweight ? col_blocks : 0) : dx ? col_blocks * row_blocks : 0;
  const int64_t dweight_tasks = fused || !dweight ? 0 : col_blocks * weight_blocks;
  const int64_t tasks = dx_tasks + dweight_tasks + bias_tasks;

  const size_t floats = BackwardScratch::floats(cut, p.bf16);
  const int used = static_cast<int>(max64(1, min64(workers, tasks)));
  float* memory = static_cast<float*>(scratch(used * floats * sizeof(float)));
  if (memory == nullptr) return false;
  auto task = [&](int worker, int64_t t) {
    const BackwardScratch s(memory + worker * floats, cut);
    if (t < dx_tasks) {
      const int64_t q0 = t % col_blocks * cols, r0 = t / col_blocks * dx_rows;
      backward_block(p, {0, p.out, q0, min64(q0 + cols, p.in), r0, min64(r0 + dx_rows, p.rows), dx, fused && dweight}, cut, s);
    } else if (t < dx_tasks + dweight_tasks) {
      t -= dx_tasks;
      const int64_t q0 = t % col_blocks * cols, p0 = t / col_blocks * dweight_rows;
      backward_block(p, {p0, min64(p0 + dweight_rows, p.out), q0, min64(q0 + cols, p.in), 0, p.rows, false, true}, cut, s);
    } else {
      const int64_t o0 = (t - dx_tasks - dweight_tasks) * kBiasCols;
      bias_block(p, o0, min64(o0 + kBiasCols, p.out));
    }
  };
  for_each_task(tasks, used, task);
  return true;
}

}  // namespace wat::WAT_ISA
