// Linear layers with few rows: forward, data gradient, weight gradient. See linear.h for the maths.
//
// With few rows the weight's way from memory is what costs, so each pass reads it once, straight into the registers of the
// thread that multiplies it, 16 bytes at a time, and its noise is made there while the next loads are under way. The product is the tensor cores' (mma.h), with the weight as the tall operand and the rows of x or dy as the eight
// columns of the short one: it costs the same for one row as for eight. Sums are in fp32 and each has one owner, so that
// results are the same from run to run.
#pragma once

#include "linear.h"
#include "mma.h"
#include "packet.h"

namespace wat {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

// Which elements of its warp's tile a thread holds, see mma.h.
struct Place {
  int warp, group, in_group;
};

WAT_DEVICE Place place() {
  const int thread = static_cast<int>(threadIdx.x);
  return {thread / 32, thread % 32 / 4, thread % 4};
}

template <class T>
WAT_HOST_DEVICE Line<T> line_of(const Matrix& matrix, int64_t row, int64_t size) {
  return {static_cast<T*>(matrix.data) + row * matrix.row, matrix.column, size, matrix.whole_packets};
}

template <class T>
WAT_HOST_DEVICE float element(const Matrix& matrix, int64_t row, int64_t column) {
  return to_float(static_cast<const T*>(matrix.data)[row * matrix.row + column * matrix.column]);
}

// Element of a bias or a gain; `otherwise` where there is none.
WAT_HOST_DEVICE float element(const Vector& vector, int64_t index, float otherwise) {
  if (vector.data == nullptr) return otherwise;
  index *= vector.step;
  if (vector.dtype == kFloat) return static_cast<const float*>(vector.data)[index];
  if (vector.dtype == kHalf) return to_float(static_cast<const Half*>(vector.data)[index]);
  return to_float(static_cast<const BFloat16*>(vector.data)[index]);
}

// The rows that one SW is for. Without noise and grid it is the same for all.
struct Shadows {
  int count, chunk;
};

WAT_HOST_DEVICE Shadows shadows_of(const LinearProblem& p) {
  if (p.noise.kind == kNoiseNone && p.grid == nullptr) return {1, static_cast<int>(p.rows)};
  return {static_cast<int>(p.shadows), static_cast<int>(p.chunk)};
}

// What each shadow does with the matrix, drawn by the first threads for all; nothing without a grid.
WAT_DEVICE void draw_grids(const LinearProblem& p, uint64_t key, GridDraw* draws) {
  if (p.grid == nullptr) return;
  for (int64_t s = threadIdx.x; s < p.shadows; s += kThreads) {
    draws[s] = draw_matrix_grid(p.thresholds, p.grid, p.grid_rows, key, static_cast<uint32_t>(s));
  }
  __syncthreads();
}

// Where SW[., j] comes from along an axis, and where PW[., j] goes to; outside [0, size) where nowhere.
WAT_HOST_DEVICE int64_t source_of(int64_t j, int64_t size, bool flip, int64_t shift) {
  return (flip ? size - 1 - j : j) - shift;
}
WAT_HOST_DEVICE int64_t target_of(int64_t j, int64_t size, bool flip, int64_t shift) {
  return flip ? size - 1 - (j + shift) : j + shift;
}

// A packet of weights as they are in memory: line o of SW from column i on, moved by `draw` if there is a grid.
template <class T>
WAT_HOST_DEVICE Packet<T> load_weights(const LinearProblem& p, int64_t o, int64_t i, const GridDraw* draw) {
  if (draw != nullptr && o < p.out) o = source_of(o, p.out, draw->flip_out, draw->shift_out);
  if (o < 0 || o >= p.out) {
    Packet<T> nothing;
    nothing.clear();
    return nothing;
  }
  const Line<const T> line = line_of<const T>(p.weight, o, p.in);
  if (draw == nullptr) return load_packet<true>(line, i);
  return load_packet_anywhere(line, source_of(i, p.in, draw->flip_in, draw->shift_in), draw->flip_in ? -1 : 1);
}

// The key, such that the compiler takes it for another: the keys of Philox's ten rounds are then made again where they are
// needed instead of kept in twenty registers.
WAT_HOST_DEVICE uint64_t fresh(uint64_t key) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(key));
#endif
  return key;
}

// A packet of line o of SW from column i on, not yet rounded.
template <class T>
WAT_HOST_DEVICE void shadow_of(const LinearProblem& p, const Packet<T>& weights, uint64_t key, int shadow, int64_t o,
                               int64_t i, float values[kPacket<T>]) {
  if (p.noise.kind == kNoiseNone) {
    WAT_UNROLL
    for (int j = 0; j < kPacket<T>; ++j) values[j] = weights[j];
    return;
  }
  noise_factors<kPacket<T>>(p.noise, key, shadow, static_cast<uint64_t>(o * p.in + i), values);
  WAT_UNROLL
  for (int j = 0; j < kPacket<T>; ++j) values[j] *= weights[j];
}

// Adds up what the warps of a block found, in their order: element n of `mine` of lane l of all warps comes to
// sums[n * 32 + l]. All threads call it, and may read all of `sums` after.
template <int count>
WAT_DEVICE void add_warps(const Place& at, const float (&mine)[count], float* sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  __syncthreads();
  WAT_UNROLL
  for (int n = 0; n < count; ++n) sums[(at.warp * count + n) * 32 + lane] = mine[n];
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < count * 32; e += kThreads) {
    float sum = sums[e];
    WAT_UNROLL
    for (int warp = 1; warp < kWarps; ++warp) sum += sums[warp * count * 32 + e];
    sums[e] = sum;  // read by this thread only
  }
  __syncthreads();
}

// A block finds 16 * MT output features of up to 8 * NT rows; its warps take turns along the input features.
template <class T, int MT, int NT>
__global__ void __launch_bounds__(kThreads, NT == 1 ? 2 : 1) linear_forward(const LinearProblem p) {
  WAT_SHARED(GridDraw, draws, kMostRows);
  WAT_SHARED(float, sums, kWarps * NT * 4 * 32);
  const Place at = place();
  const uint64_t key = static_cast<uint64_t>(*p.key);
  const Shadows shadows = shadows_of(p);
  const int rows = static_cast<int>(p.rows);
  const int64_t first_out = static_cast<int64_t>(blockIdx.x) * (16 * MT);
  draw_grids(p, key, draws);

  const auto load = [&](int64_t column, const GridDraw* draw, Packet<T> (&weights)[MT][2]) {
    WAT_UNROLL
    for (int m = 0; m < 2 * MT; ++m) {
      weights[m / 2][m % 2] = load_weights<T>(p, first_out + 8 * m + at.group, column, draw);
    }
  };

  float c[MT][NT * 4] = {};
  Packet<T> next[MT][2];  // on the way while these are multiplied
  constexpr int kStep = 4 * kPacket<T>;  // columns of a warp: a packet for each thread of a group
  if (p.grid == nullptr) load(kStep * at.warp + kPacket<T> * at.in_group, nullptr, next);
  // all threads of a warp leave this loop together: `mma` needs them all
  for (int64_t step = kStep * at.warp; step < p.in; step += kStep * kWarps) {
    const int64_t column = step + kPacket<T> * at.in_group;
    Packet<T> x[NT];
    WAT_UNROLL
    for (int n = 0; n < NT; ++n) {
      x[n].clear();
      if (8 * n + at.group < rows) x[n] = load_packet<false>(line_of<const T>(p.x, 8 * n + at.group, p.in), column);
    }
    Packet<T> weights[MT][2];
    WAT_UNROLL
    for (int m = 0; m < 2 * MT; ++m) weights[m / 2][m % 2] = next[m / 2][m % 2];
    if (p.grid == nullptr) load(column + kStep * kWarps, nullptr, next);

    for (int s = 0; s < shadows.count; ++s) {
      const int from = s * shadows.chunk, to = from + shadows.chunk;
      if (p.grid != nullptr) load(column, draws + s, weights);
      constexpr int kParts = kPacket<T> / 4;  // of a packet: four k each
      FragmentA<T> a[MT][kParts];
      WAT_UNROLL
      for (int m = 0; m < MT; ++m) {
        const int64_t o = first_out + 16 * m + at.group;
        float lower[kPacket<T>], upper[kPacket<T>];
        shadow_of(p, weights[m][0], NT > 1 ? fresh(key) : key, s, o, column, lower);
        shadow_of(p, weights[m][1], NT > 1 ? fresh(key) : key, s, o + 8, column, upper);
        WAT_UNROLL
        for (int k = 0; k < kParts; ++k) make_a<T>(lower + 4 * k, upper + 4 * k, &a[m][k]);
      }
      WAT_UNROLL
      for (int k = 0; k < kParts; ++k) {
        WAT_UNROLL
        for (int n = 0; n < NT; ++n) {
          if (8 * n >= to || 8 * n + 8 <= from) continue;  // none of these rows is of this shadow
          const bool mine = 8 * n + at.group >= from && 8 * n + at.group < to;
          float column_of_b[4];
          WAT_UNROLL
          for (int j = 0; j < 4; ++j) column_of_b[j] = mine ? x[n][4 * k + j] : 0.0f;
          FragmentB<T> b;
          make_b<T>(column_of_b, &b);
          WAT_UNROLL
          for (int m = 0; m < MT; ++m) multiply_add(c[m] + 4 * n, a[m][k], b);
        }
      }
    }
  }

  WAT_UNROLL
  for (int m = 0; m < MT; ++m) {
    add_warps(at, c[m], sums);
    // element e of `sums`: lane e % 32 of element e / 32 = 4 * n + i of its four
    for (int e = static_cast<int>(threadIdx.x); e < NT * 4 * 32; e += kThreads) {
      const int lane = e % 32, i = e / 32 % 4, n = e / 128;
      const int64_t o = first_out + 16 * m + lane / 4 + (i < 2 ? 0 : 8);
      const int row = 8 * n + lane % 4 * 2 + i % 2;
      const bool inside = o < p.out && row < rows;
      if (p.dgain != nullptr) {
        sums[e] = inside ? sums[e] * element<T>(p.dy, row, o) : 0.0f;
      } else if (inside) {
        const float y = sums[e] * element(p.gain, o, 1.0f) + element(p.bias, o, 0.0f);
        line_of<T>(p.result, row, p.out).data[o * p.result.column] = from_float<T>(y);
      }
    }
    if (p.dgain == nullptr) continue;
    __syncthreads();
    const int feature = static_cast<int>(threadIdx.x);
    if (feature < 16 && first_out + 16 * m + feature < p.out) {
      float sum = 0.0f;
      for (int row = 0; row < rows; ++row) {
        const int i = (feature < 8 ? 0 : 2) + row % 2;
        sum += sums[(row / 8 * 4 + i) * 32 + feature % 8 * 4 + row % 8 / 2];
      }
      p.dgain[first_out + 16 * m + feature] = sum;
    }
  }
}

// Input features of a block of the data gradient.
template <class T>
constexpr int kDataTile = 8 * kPacket<T>;

// A block finds kDataTile input features of up to 8 * NT rows, of some of the output features: block (i, s) of (blocks,
// splits) and the warps in it take turns along them, 16 at a time. A thread holds a packet of input features of each of
// four output features, so that tile j of A has elements 2j and 2j + 1 of its packet.
template <class T, int NT>
__global__ void __launch_bounds__(kThreads, NT == 1 ? 2 : 1) linear_backward_data(const LinearProblem p) {
  constexpr int kTiles = kPacket<T> / 2;
  WAT_SHARED(GridDraw, draws, kMostRows);
  WAT_SHARED(float, sums, kWarps * NT * 4 * 32);
  const Place at = place();
  const uint64_t key = static_cast<uint64_t>(*p.key);
  const Shadows shadows = shadows_of(p);
  const int rows = static_cast<int>(p.rows);
  const int64_t first_in = static_cast<int64_t>(blockIdx.x) * kDataTile<T>, column = first_in + kPacket<T> * at.group;
  const int64_t stride = static_cast<int64_t>(16) * kWarps * p.splits;
  draw_grids(p, key, draws);

  const auto load = [&](int64_t o, const GridDraw* draw, Packet<T> (&weights)[4]) {
    WAT_UNROLL
    for (int k = 0; k < 4; ++k) weights[k] = load_weights<T>(p, o + k, column, draw);
  };

  float c[kTiles][NT * 4] = {};
  Packet<T> weights[4];  // the next ones are on their way while these are multiplied
  const int64_t first_step = 16 * (static_cast<int64_t>(blockIdx.y) * kWarps + at.warp);
  if (p.grid == nullptr) load(first_step + 4 * at.in_group, nullptr, weights);
  for (int64_t step = first_step; step < p.out; step += stride) {
    const int64_t o = step + 4 * at.in_group;
    for (int s = 0; s < shadows.count; ++s) {
      const int from = s * shadows.chunk, to = from + shadows.chunk;
      if (p.grid != nullptr) load(o, draws + s, weights);
      FragmentA<T> a[kTiles];
      WAT_KEEP_LOOP
      for (int half = 0; half < 2; ++half) {  // what a half is about moves to the registers that this loop names
        float first[kPacket<T>], second[kPacket<T>];
        shadow_of(p, weights[0], fresh(key), s, o + 2 * half, column, first);
        shadow_of(p, weights[1], fresh(key), s, o + 2 * half + 1, column, second);
        WAT_UNROLL
        for (int k = 0; k < 2; ++k) {
          const Packet<T> used = weights[k];
          weights[k] = weights[k + 2];
          weights[k + 2] = used;
        }
        WAT_UNROLL
        for (int j = 0; j < kTiles; ++j) {
          if (half != 0) move_half(&a[j]);
          set_a(&a[j], 1, first[2 * j], second[2 * j], first[2 * j + 1], second[2 * j + 1]);
        }
      }
      if (p.grid == nullptr && s + 1 == shadows.count) load(o + stride, nullptr, weights);

      FragmentB<T> b[NT];  // gain * dy of this thread's output features, in the rows of this shadow
      float gain[4];
      WAT_UNROLL
      for (int k = 0; k < 4; ++k) gain[k] = o + k < p.out ? element(p.gain, o + k, 1.0f) : 0.0f;
      WAT_UNROLL
      for (int n = 0; n < NT; ++n) {
        const int row = 8 * n + at.group;
        float column_of_b[4] = {};
        if (row >= from && row < to) load_four(line_of<const T>(p.dy, row, p.out), o, column_of_b);
        WAT_UNROLL
        for (int k = 0; k < 4; ++k) column_of_b[k] *= gain[k];
        make_b<T>(column_of_b, &b[n]);
      }
      WAT_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        WAT_UNROLL
        for (int n = 0; n < NT; ++n) {
          if (8 * n >= to || 8 * n + 8 <= from) continue;
          multiply_add(c[j] + 4 * n, a[j], b[n]);
        }
      }
    }
  }

  WAT_UNROLL
  for (int j = 0; j < kTiles; ++j) {
    add_warps(at, c[j], sums);
    for (int e = static_cast<int>(threadIdx.x); e < NT * 4 * 32; e += kThreads) {
      const int lane = e % 32, i = e / 32 % 4, n = e / 128;
      const int64_t into = first_in + lane / 4 * kPacket<T> + 2 * j + (i < 2 ? 0 : 1);
      const int row = 8 * n + lane % 4 * 2 + i % 2;
      if (into >= p.in || row >= rows) continue;
      if (p.splits > 1) {
        p.parts[(blockIdx.y * p.rows + row) * p.in + into] = sums[e];
      } else {
        line_of<T>(p.result, row, p.in).data[into * p.result.column] = from_float<T>(sums[e]);
      }
    }
  }
}

// Adds up the parts of a data gradient that was split, in their order.
template <class T>
__global__ void __launch_bounds__(kThreads) linear_add_parts(const LinearProblem p) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, size = p.rows * p.in;
  if (e >= size) return;
  float sum = 0.0f;
  for (int split = 0; split < p.splits; ++split) sum += p.parts[split * size + e];
  line_of<T>(p.result, e / p.in, p.in).data[e % p.in * p.result.column] = from_float<T>(sum);
}

// Input features and output features of a block of the weight gradient, and of one step in it.
constexpr int kTileIn = 128, kTileOut = 128, kStepOut = 32;

// The rows of some features in shared memory, feature by feature: in words of `per_word` rows, so that the words of one
// feature are next to each other. kStride is 4 more than a multiple of 32, so that 8 features of 4 words are in 32 banks.
template <class T>
struct RowsOfFeatures {
  static constexpr int kStride = kMostRows / kPerWord<T> + 4;
  uint32_t* words;

  WAT_HOST_DEVICE_MEMBER void put(int feature, int row, float x) const {
    reinterpret_cast<T*>(words + feature * kStride)[row] = from_float<T>(x);
  }

  // Rows of 16 from `first` on that are this thread's, those outside [from, to) as zero.
  WAT_HOST_DEVICE_MEMBER void rows(int feature, int first, int in_group, int from, int to, float values[4]) const {
    WAT_UNROLL
    for (int w = 0; w < 4 / kPerWord<T>; ++w) {
      const int place = first / kPerWord<T> + 4 * w + in_group;
      const uint32_t word = words[feature * kStride + place];
      WAT_UNROLL
      for (int h = 0; h < kPerWord<T>; ++h) {
        const int row = place * kPerWord<T> + h;
        values[w * kPerWord<T> + h] = row >= from && row < to ? part_of_word<T>(word, h) : 0.0f;
      }
    }
  }
};

// A block finds 128 x 128 elements of dPW, 32 output features at a time. The product is over the rows; the noise
// multiplies it, shadow by shadow. Four tiles of C side by side give a thread eight input features next to each other:
// column g of tile j is input feature 8 * (g / 2) + 2 * j + g % 2 of 32.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) linear_backward_weight(const LinearProblem p) {
  using Rows = RowsOfFeatures<T>;
  WAT_SHARED(GridDraw, draws, kMostRows);
  WAT_SHARED(uint32_t, x_words, kTileIn * Rows::kStride);
  WAT_SHARED(uint32_t, dy_words, kStepOut * Rows::kStride);
  const Rows x_rows{x_words}, dy_rows{dy_words};
  const Place at = place();
  const uint64_t key = static_cast<uint64_t>(*p.key);
  const Shadows shadows = shadows_of(p);
  const int rows = static_cast<int>(p.rows), padded = (rows + 15) / 16 * 16;
  const int64_t tiles_in = (p.in + kTileIn - 1) / kTileIn;
  const int64_t first_in = blockIdx.x % tiles_in * kTileIn, first_out = blockIdx.x / tiles_in * kTileOut;
  draw_grids(p, key, draws);

  // features of PW: a row of x or dy is read where the feature goes to in that row's shadow
  for (int e = static_cast<int>(threadIdx.x); e < padded * kTileIn; e += kThreads) {
    const int row = e / kTileIn, feature = e % kTileIn;
    int64_t i = first_in + feature;
    const bool within = row < rows && i < p.in;
    if (within && p.grid != nullptr) {
      const GridDraw& draw = draws[row / shadows.chunk];
      i = target_of(i, p.in, draw.flip_in, draw.shift_in);
    }
    x_rows.put(feature, row, within && i >= 0 && i < p.in ? element<T>(p.x, row, i) : 0.0f);
  }

  const int in_warp = at.warp % 4 * 32;  // of the block's input features
  const int64_t i = first_in + in_warp + 8 * at.in_group;
  for (int64_t out = first_out; out < first_out + kTileOut && out < p.out; out += kStepOut) {
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < padded * kStepOut; e += kThreads) {
      const int row = e / kStepOut, feature = e % kStepOut;
      int64_t o = out + feature;
      const bool within = row < rows && o < p.out;
      if (within && p.grid != nullptr) {
        const GridDraw& draw = draws[row / shadows.chunk];
        o = target_of(o, p.out, draw.flip_out, draw.shift_out);
      }
      const bool inside = within && o >= 0 && o < p.out;
      dy_rows.put(feature, row, inside ? element(p.gain, o, 1.0f) * element<T>(p.dy, row, o) : 0.0f);
    }
    __syncthreads();

    float total[2][8] = {};
    const int out_warp = at.warp / 4 * 16;
    for (int s = 0; s < shadows.count; ++s) {
      const int from = s * shadows.chunk, to = from + shadows.chunk;
      float c[4][4] = {};
      for (int first = from / 16 * 16; first < to; first += 16) {
        float lower[4], upper[4];
        dy_rows.rows(out_warp + at.group, first, at.in_group, from, to, lower);
        dy_rows.rows(out_warp + 8 + at.group, first, at.in_group, from, to, upper);
        FragmentA<T> a;
        make_a<T>(lower, upper, &a);
        WAT_UNROLL
        for (int j = 0; j < 4; ++j) {
          float column[4];
          x_rows.rows(in_warp + 8 * (at.group / 2) + 2 * j + at.group % 2, first, at.in_group, from, to, column);
          FragmentB<T> b;
          make_b<T>(column, &b);
          multiply_add(c[j], a, b);
        }
      }
      WAT_UNROLL
      for (int half = 0; half < 2; ++half) {
        float factors[8];
        if (p.noise.kind == kNoiseNone) {
          WAT_UNROLL
          for (int j = 0; j < 8; ++j) factors[j] = 1.0f;
        } else {
          int64_t o = out + out_warp + 8 * half + at.group, first = i;
          bool backwards = false;
          if (p.grid != nullptr) {  // the elements of SW that these of PW go to
            const GridDraw& draw = draws[s];
            o = target_of(o, p.out, draw.flip_out, draw.shift_out);
            backwards = draw.flip_in;
            first = target_of(backwards ? i + 7 : i, p.in, draw.flip_in, draw.shift_in);
          }
          noise_factors<8>(p.noise, key, s, static_cast<uint64_t>(o * p.in + first), factors);
          WAT_UNROLL
          for (int j = 0; j < 4; ++j) {
            const float low = factors[j], high = factors[7 - j];
            factors[j] = backwards ? high : low;
            factors[7 - j] = backwards ? low : high;
          }
        }
        WAT_UNROLL
        for (int j = 0; j < 8; ++j) total[half][j] += factors[j] * c[j / 2][2 * half + j % 2];
      }
    }
    WAT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int64_t o = out + out_warp + 8 * half + at.group;
      if (o >= p.out) continue;
      const Line<T> line = line_of<T>(p.result, o, p.in);
      WAT_UNROLL
      for (int j = 0; j < 8; j += kPacket<T>) store_packet(line, i + j, total[half] + j);
    }
  }
}

}  // namespace wat
