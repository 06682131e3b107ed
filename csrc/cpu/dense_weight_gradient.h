// Weight gradient. Include after target_*.h.
//
// A task owns dPW of one block of output channels by a few register tiles of input channels, for all shadows and all
// pixels: nothing is reduced across threads, so the result does not depend on them. Pixels come in blocks whose dy is
// packed into the first cache; for each active tap a list of (dy, x) pairs names the pixels that do not fall on padding.
//
// Where a cell is two bf16 (operand.h) it holds the same pixel of two images, which meet the same taps at the same
// offsets: the lists are those of one image, and the part of x that a block reads is packed beside its dy.
#pragma once

#include "dense.h"
#include "dense_pack.h"
#include "dense_tile.h"
#include "threads.h"

namespace wat::WAT_ISA {

constexpr int64_t kGradientPixels = 192;         // pixels of a block
constexpr int64_t kListBytes = 256 << 10;        // lists of one block
constexpr int64_t kGradientBytes = 512 << 10;    // dSW of a task; twice more for its earlier blocks and for dPW
constexpr int64_t kBlocksAtOnce = 64;            // blocks added up before they are added to the sum of all others
constexpr int64_t kWindowBytes = 128 << 10;      // packed x of a block, where a cell is two numbers
constexpr int64_t kTilesATask = 2;               // input-channel tiles that share one packed dy

template <class T>
struct WeightGradient {
  const ConvProblem& p;
  int workers;
  int64_t blocks;           // of output channels in a group
  int64_t tile_rows;        // most input channels of a tile
  int64_t tiles;            // input-channel tiles of a group
  int64_t tile_groups;      // tasks along the input channels
  int64_t most_inputs;      // of a task
  int64_t pixels;           // of a block
  int64_t images, lines, columns;  // a block of pixels: whole images, or lines of one, or a piece of one line
  int64_t s_n, s_h, s_w;    // strides of the x that lists point into: the tensor's, or those of its packed window
  int64_t window;           // cells of the packed window

  WeightGradient(const ConvProblem& problem, int the_workers) : p(problem), workers(the_workers) {
    blocks = (p.og + kLanes - 1) / kLanes;
    tile_rows = max64(1, min64(kTileRows, kGradientBytes / (p.K * kLanes * static_cast<int64_t>(sizeof(float)))));
    tiles = (p.I + tile_rows - 1) / tile_rows;
    const int64_t together = tile_rows < kTileRows ? 1 : kCell > 1 && p.K == 1 ? 2 * kTilesATask : kTilesATask;
    tile_groups = (tiles + together - 1) / together;
    most_inputs = 0;
    for (int64_t i = 0; i < tile_groups; ++i) {
      most_inputs = max64(most_inputs, input_of_tile(last_tile(i)) - input_of_tile(first_tile(i)));
    }
    pixels = min64(kGradientPixels, max64(4, kListBytes / (p.K * static_cast<int64_t>(sizeof(PixelPair)))));
    columns = min64(p.OW, pixels);
    lines = max64(1, min64(p.OH, pixels / columns));
    images = p.OH * p.OW <= pixels ? max64(1, min64(cells(p.chunk), pixels / (p.OH * p.OW))) : 1;
    s_n = p.x_n, s_h = p.x_h, s_w = p.x_w, window = 0;
    if constexpr (kCell > 1) {
      set_window();
      while (!fits() && images * lines * columns > 1) {
        int64_t& longest = images > 1 ? images : lines > 1 ? lines : columns;
        longest = (longest + 1) / 2;
        set_window();
      }
    }
  }

  void set_window() {
    s_w = (most_inputs + Vec::width - 1) / Vec::width * Vec::width;
    s_h = min64(p.W, (columns - 1) * p.stride_w + (p.kw - 1) * p.dilation_w + 1) * s_w;
    s_n = min64(p.H, (lines - 1) * p.stride_h + (p.kh - 1) * p.dilation_h + 1) * s_h;
    window = images * s_n;
  }

  bool fits() const { return window * static_cast<int64_t>(sizeof(float)) <= kWindowBytes; }

  int64_t first_tile(int64_t tile_group) const { return tile_group * tiles / tile_groups; }
  int64_t last_tile(int64_t tile_group) const { return (tile_group + 1) * tiles / tile_groups; }
  int64_t input_of_tile(int64_t tile) const { return tile * p.I / tiles; }

  struct Room {
    float* dsw;      // (active tap, inputs, kLanes)
    float* earlier;  // the same of blocks that have been added up
    float* dpw;      // (inputs, K, kLanes) or (K, inputs, kLanes), as the weight lies in memory
    float* dy;       // (pixels, kLanes)
    float* x;        // (window,)
    float* pack;
    double* column_sums;  // (kLanes,) of dy
    PixelPair* pairs;    // (active tap, pixels)
    int64_t* counts;     // (active tap,): pairs of one image, or of the block
    int64_t* ranges;     // (2 * (kh + kw),): what the lists were made for
  };

  size_t worker_bytes() const {
    const int64_t floats = 3 * p.K * most_inputs * kLanes + pixels * kLanes + window + pack_scratch(p) + 2 * kLanes;
    const size_t bytes = floats * sizeof(float) + p.K * pixels * sizeof(PixelPair) +
                         (p.K + 2 * (p.kh + p.kw) + 4) * sizeof(int64_t);
    return (bytes + 63) / 64 * 64;
  }

  Room room_of(char* memory) const {
    Room room;
    room.dsw = reinterpret_cast<float*>(memory);
    room.earlier = room.dsw + p.K * most_inputs * kLanes;
    room.dpw = room.earlier + p.K * most_inputs * kLanes;
    room.dy = room.dpw + p.K * most_inputs * kLanes;
    room.x = room.dy + pixels * kLanes;
    room.column_sums = reinterpret_cast<double*>(room.x + window);
    room.pack = reinterpret_cast<float*>(room.column_sums + kLanes);
    room.pairs = reinterpret_cast<PixelPair*>(room.pack + pack_scratch(p));
    room.counts = reinterpret_cast<int64_t*>(room.pairs + p.K * pixels);
    room.ranges = room.counts + p.K;
    return room;
  }

  // Output positions o of [begin, end) whose input origin + o * stride lies in [0, size), relative to begin.
  static void clip(int64_t begin, int64_t end, int64_t origin, int64_t stride, int64_t size, int64_t* range) {
    const int64_t low = origin >= 0 ? 0 : (-origin + stride - 1) / stride;
    const int64_t high = origin >= size ? 0 : (size - 1 - origin) / stride + 1;
    range[0] = max64(low, begin) - begin;
    range[1] = max64(range[0], min64(high, end) - begin);
  }

  // Lists for a block of lines [h0, h1) and columns [w0, w1); remade only when they differ from the last block's.
  void make_lists(const TapRow& row, int64_t h0, int64_t h1, int64_t w0, int64_t w1, int vectors, bool* valid,
                  const Room& room) const {
    bool same = *valid;
    int64_t* known = room.ranges;
    const auto note = [&](int64_t value) {
      same = same && *known == value;
      *known++ = value;
    };
    for (int64_t r = 0; r < p.kh; ++r) {
      int64_t range[2];
      clip(h0, h1, r * p.dilation_h - p.pad_top, p.stride_h, p.H, range);
      note(range[0]), note(range[1]);
    }
    for (int64_t c = 0; c < p.kw; ++c) {
      int64_t range[2];
      clip(w0, w1, c * p.dilation_w - p.pad_left, p.stride_w, p.W, range);
      note(range[0]), note(range[1]);
    }
    note(w1 - w0), note(h1 - h0);
    if (same) return;
    *valid = true;
    const int64_t lanes = vectors * Vec::width, width = w1 - w0;
    const int active = tap_count(row);
    for (int j = 0; j < active; ++j) {
      const int64_t tap = tap_output(row, j), r = tap / p.kw, c = tap % p.kw;
      const int64_t* high = room.ranges + 2 * r;
      const int64_t* wide = room.ranges + 2 * (p.kh + c);
      PixelPair* pair = room.pairs + j * pixels;
      for (int64_t n = 0; n < images; ++n) {
        for (int64_t h = high[0]; h < high[1]; ++h) {
          for (int64_t w = wide[0]; w < wide[1]; ++w) {
            pair->dy = ((n * (h1 - h0) + h) * width + w) * lanes;
            pair->x = n * s_n + (h * p.stride_h + r * p.dilation_h) * s_h + (w * p.stride_w + c * p.dilation_w) * s_w;
            ++pair;
          }
        }
        if (n == 0) room.counts[j] = pair - (room.pairs + j * pixels);
        if (room.counts[j] == 0) break;
      }
    }
  }

  // Elements from the first image of a cell to its second; 0 where there is none.
  int64_t to_second(int64_t n, int64_t stride) const { return kCell * n + 1 < p.chunk ? stride : 0; }

  // n counts the cells of the shadow's images.
  void pack_dy(int64_t o, int64_t count, int64_t shadow, int64_t n0, int64_t n1, int64_t h0, int64_t h1, int64_t w0,
               int64_t w1, int vectors, bool sums, const Room& room) const {
    float* to = room.dy;
    Vec total[kTileVectors];
    for (int v = 0; v < vectors; ++v) total[v] = Vec::zero();
    for (int64_t n = n0; n < n1; ++n) {
      const int64_t second = to_second(n, p.y_n);
      for (int64_t h = h0; h < h1; ++h) {
        const T* from = static_cast<const T*>(p.dy) + (shadow * p.chunk + kCell * n) * p.y_n + h * p.y_h + w0 * p.y_w + o;
        for (int64_t w = w0; w < w1; ++w, from += p.y_w, to += vectors * Vec::width) {
          for (int v = 0; v < vectors; ++v) {
            const T* at = from + v * Vec::width;
            const int left = static_cast<int>(min64(Vec::width, count - v * Vec::width));
            const Vec value = make_cells(at, second ? at + second : nullptr, left);
            value.store(to + v * Vec::width);
            if (sums) total[v] = total[v] + sum_cells(value);
          }
        }
      }
    }
    if (!sums) return;
    float lanes[kLanes];
    for (int v = 0; v < vectors; ++v) total[v].store(lanes + v * Vec::width);
    for (int l = 0; l < vectors * Vec::width; ++l) room.column_sums[l] += lanes[l];
  }

  // Where the first pixel of a block meets the first tap, at the first of `inputs` channels; it may lie on padding. With
  // cells of two numbers, in the window of x that is packed here.
  const Cell<T>* block_of_x(int64_t i0, int64_t inputs, int64_t shadow, int64_t n0, int64_t n1, int64_t h0, int64_t h1,
                            int64_t w0, int64_t w1, const Room& room) const {
    const int64_t h = h0 * p.stride_h - p.pad_top, w = w0 * p.stride_w - p.pad_left;
    const T* x = static_cast<const T*>(p.x) + (shadow * p.chunk + kCell * n0) * p.x_n + i0;
    if constexpr (kCell == 1) {
      return x + h * p.x_h + w * p.x_w;
    } else {
      const int64_t top = max64(h, 0), left = max64(w, 0);
      const int64_t bottom = min64(p.H, (h1 - 1) * p.stride_h - p.pad_top + (p.kh - 1) * p.dilation_h + 1);
      const int64_t right = min64(p.W, (w1 - 1) * p.stride_w - p.pad_left + (p.kw - 1) * p.dilation_w + 1);
      for (int64_t n = n0; n < n1; ++n, x += kCell * p.x_n) {
        const int64_t second = to_second(n, p.x_n);
        for (int64_t r = top; r < bottom; ++r) {
          const T* from = x + r * p.x_h + left * p.x_w;
          float* to = room.x + (n - n0) * s_n + (r - top) * s_h;
          for (int64_t c = left; c < right; ++c, from += p.x_w, to += s_w) {
            for (int64_t i = 0; i < inputs; i += Vec::width) {
              const int count = static_cast<int>(min64(Vec::width, inputs - i));
              make_cells(from + i, second ? from + i + second : nullptr, count).store(to + i);
            }
          }
        }
      }
      return room.x + (h - top) * s_h + (w - left) * s_w;
    }
  }

  // dSW of the blocks since the last call, `floats` of it, to what was found before.
  static void add_to_earlier(int64_t floats, bool anything, const Room& room) {
    for (int64_t i = 0; i < floats; i += Vec::width) {
      const Vec value = Vec::load(room.dsw + i);
      (anything ? Vec::load(room.earlier + i) + value : value).store(room.earlier + i);
    }
  }

  // dSW of one shadow, into room.dsw.
  void accumulate(const TapRow& row, int64_t shadow, int64_t group, int64_t block, int64_t tile_group, bool sums,
                  bool* lists_valid, const Room& room) const {
    const int64_t o = group * p.og + block * kLanes, count = min64(kLanes, p.og - block * kLanes);
    const int vectors = count <= Vec::width ? 1 : kTileVectors;
    const int64_t lanes = vectors * Vec::width;
    const int64_t i0 = input_of_tile(first_tile(tile_group)), inputs = input_of_tile(last_tile(tile_group)) - i0;
    const int active = tap_count(row);
    const int64_t floats = active * inputs * lanes;
    int64_t blocks_here = 0;
    bool first = true, anything_earlier = false;
    for (int64_t h0 = 0; h0 < p.OH; h0 += lines) {
      const int64_t h1 = min64(h0 + lines, p.OH);
      for (int64_t w0 = 0; w0 < p.OW; w0 += columns) {
        const int64_t w1 = min64(w0 + columns, p.OW);
        make_lists(row, h0, h1, w0, w1, vectors, lists_valid, room);
        for (int64_t n0 = 0; n0 < cells(p.chunk); n0 += images) {
          const int64_t n1 = min64(n0 + images, cells(p.chunk));
          pack_dy(o, count, shadow, n0, n1, h0, h1, w0, w1, vectors, sums, room);
          const Cell<T>* x = block_of_x(group * p.I + i0, inputs, shadow, n0, n1, h0, h1, w0, w1, room);
          for (int j = 0; j < active; ++j) {
            for (int64_t tile = first_tile(tile_group); tile < last_tile(tile_group); ++tile) {
              const int64_t i = input_of_tile(tile);
              const int size = static_cast<int>(input_of_tile(tile + 1) - i);
              outer_tile_of<Cell<T>>(size, vectors)(x + i - i0, room.dy, room.pairs + j * pixels,
                                                    room.counts[j] * (n1 - n0), room.dsw + (j * inputs + i - i0) * lanes,
                                                    lanes, first);
            }
          }
          first = ++blocks_here == kBlocksAtOnce;
          if (first) {
            add_to_earlier(floats, anything_earlier, room);
            anything_earlier = true;
            blocks_here = 0;
          }
        }
      }
    }
    if (anything_earlier) {
      if (!first) add_to_earlier(floats, true, room);
      memcpy(room.dsw, room.earlier, sizeof(float) * floats);
    } else if (first) {
      memset(room.dsw, 0, sizeof(float) * floats);
    }
  }

  // dPW (+)= M^T (dSW * eps)
  void transpose_taps(const TapRow& row, const TapRow& row_t, const NoiseStream& noise, int64_t o, int64_t count,
                      int vectors, int64_t i0, int64_t inputs, bool first, const Room& room) const {
    const int64_t lanes = vectors * Vec::width;
    const int active = tap_count(row);
    if (p.noise) {
      float* eps = room.pack;
      float* made = room.pack + kNoiseChannels * Vec::width;
      for (int j = 0; j < active; ++j) {
        for (int v = 0; v < vectors; ++v) {
          const int outputs = static_cast<int>(min64(Vec::width, count - v * Vec::width));
          noise_block(p, noise, o + v * Vec::width, outputs, i0, inputs, tap_output(row, j), made, eps);
          for (int64_t i = 0; i < inputs; ++i) {
            float* at = room.dsw + (j * inputs + i) * lanes + v * Vec::width;
            (Vec::load(at) * Vec::load(eps + i * Vec::width)).store(at);
          }
        }
      }
    }
    int64_t* slot = room.counts;  // of each output tap; the lists are remade after this
    for (int j = 0; j < active; ++j) slot[tap_output(row, j)] = j;
    const bool taps_fastest = p.dw_t == 1;
    const int64_t step_i = (taps_fastest ? p.K : 1) * lanes, step_tap = (taps_fastest ? 1 : inputs) * lanes;
    if (first && tap_count(row_t) < p.K) memset(room.dpw, 0, sizeof(float) * p.K * inputs * lanes);
    const int reached = tap_count(row_t);
    for (int j = 0; j < reached; ++j) {
      const int entries = tap_entries(row_t, j);
      float* to = room.dpw + tap_output(row_t, j) * step_tap;
      for (int e = 0; e < entries; ++e) {
        const float* from = room.dsw + slot[tap_input(row_t, j, e)] * inputs * lanes;
        const Vec coefficient = Vec::set(tap_coefficient(row_t, j, e));
        const bool fresh = first && e == 0;
        for (int64_t i = 0; i < inputs; ++i) {
          for (int64_t l = 0; l < lanes; l += Vec::width) {
            Vec value = Vec::load(from + i * lanes + l) * coefficient;
            if (!fresh) value = value + Vec::load(to + i * step_i + l);
            value.store(to + i * step_i + l);
          }
        }
      }
    }
  }

  // Elements [c, c + n) of the weight in the order of its gradient, which may have the other layout.
  Vec weight_line(const T* weight, bool taps_fastest, int64_t c, int n) const {
    if (taps_fastest ? p.w_t == 1 && p.w_i == p.K : p.w_i == 1) {
      return n == Vec::width ? load_vec(weight + c) : load_vec(weight + c, n);
    }
    float line[Vec::width] = {};
    for (int r = 0; r < n; ++r) {
      const int64_t e = c + r;
      line[r] = load_one(weight + (taps_fastest ? e / p.K * p.w_i + e % p.K * p.w_t : e * p.w_i));
    }
    return Vec::load(line);
  }

  // The channel that column c of a line of the gradient is of, counted from i0 on.
  int64_t column_channel(bool taps_fastest, int64_t c) const { return taps_fastest ? c / p.K : c; }

  // The gain of columns [c, c + n) of group's lines, which are outputs if the convolution is transposed.
  Vec column_gain(int64_t group, int64_t i0, bool taps_fastest, int64_t c, int n) const {
    float line[Vec::width] = {};
    for (int r = 0; r < n; ++r) {
      line[r] = p.gain[p.gain_count == 1 ? 0 : group * p.I + i0 + column_channel(taps_fastest, c + r)];
    }
    return Vec::load(line);
  }

  // room.dpw, transposed and times the gain, to dweight; <PW, dPW> of each output channel, a row or, if the convolution is
  // transposed, a column, to `gain_sums`.
  void write(int64_t o, int64_t count, int vectors, int64_t i0, int64_t inputs, float* gain_sums, const Room& room) const {
    const bool taps_fastest = p.dw_t == 1;
    const int64_t lanes = vectors * Vec::width;
    const int64_t runs = taps_fastest ? 1 : p.K, length = taps_fastest ? inputs * p.K : inputs;
    for (int v = 0; v < vectors; ++v) {
      const int outputs = static_cast<int>(min64(Vec::width, count - v * Vec::width));
      Vec dot[Vec::width];  // of rows
      for (int r = 0; r < Vec::width; ++r) dot[r] = Vec::zero();
      for (int64_t run = 0; run < runs; ++run) {
        const float* from = room.dpw + run * inputs * lanes + v * Vec::width;
        for (int64_t c = 0; c < length; c += Vec::width) {
          const int n = static_cast<int>(min64(Vec::width, length - c));
          Vec rows[Vec::width];
          for (int r = 0; r < Vec::width; ++r) rows[r] = r < n ? Vec::load(from + (c + r) * lanes) : Vec::zero();
          transpose(rows);
          const Vec column_scale = p.transposed && p.gain ? column_gain(o / p.og, i0, taps_fastest, c, n) : Vec::set(1.0f);
          Vec column_dot = Vec::zero();
          for (int r = 0; r < outputs; ++r) {
            const int64_t at = o + v * Vec::width + r;
            if (gain_sums) {
              const T* weight = static_cast<const T*>(p.weight) + at * p.w_o + i0 * p.w_i + run * p.w_t;
              const Vec line = weight_line(weight, taps_fastest, c, n);
              if (p.transposed) {
                column_dot = fma(line, rows[r], column_dot);
              } else {
                dot[r] = fma(line, rows[r], dot[r]);
              }
            }
            Vec value = rows[r] * column_scale;
            if (p.gain && !p.transposed) value = value * Vec::set(p.gain[p.gain_count == 1 ? 0 : at]);
            T* to = static_cast<T*>(p.dweight) + at * p.dw_o + i0 * p.dw_i + run * p.dw_t + c;
            if (n == Vec::width) {
              store_vec(to, value);
            } else {
              store_vec(to, value, n);
            }
          }
          if (gain_sums && p.transposed) {
            float line[Vec::width];
            column_dot.store(line);
            for (int r = 0; r < n; ++r) gain_sums[column_channel(taps_fastest, c + r)] += line[r];
          }
        }
      }
      if (gain_sums && !p.transposed) {
        for (int r = 0; r < outputs; ++r) gain_sums[v * Vec::width + r] = sum(dot[r]);
      }
    }
  }

  void run_task(int64_t task, char* memory, float* gain_sums) const {
    const Room room = room_of(memory);
    const int64_t tile_group = task % tile_groups;
    const int64_t block = task / tile_groups % blocks;
    const int64_t group = task / tile_groups / blocks;
    const int64_t o = group * p.og + block * kLanes, count = min64(kLanes, p.og - block * kLanes);
    const int vectors = count <= Vec::width ? 1 : kTileVectors;
    const int64_t i0 = input_of_tile(first_tile(tile_group)), inputs = input_of_tile(last_tile(tile_group)) - i0;
    const bool sums = p.dbias != nullptr && tile_group == 0;
    for (int l = 0; l < kLanes; ++l) room.column_sums[l] = 0;
    for (int64_t shadow = 0; shadow < p.shadows; ++shadow) {
      const int64_t row_index = shadow_row(p, shadow);
      const TapRow row = forward_taps(p, row_index), row_t = transposed_taps(p, row_index);
      bool lists_valid = false;
      accumulate(row, shadow, group, block, tile_group, sums, &lists_valid, room);
      const NoiseStream noise = noise_stream(p.noise, p.amount, p.key, shadow);
      transpose_taps(row, row_t, noise, o, count, vectors, i0, inputs, shadow == 0, room);
    }
    if (sums) {
      for (int64_t l = 0; l < count; ++l) p.dbias[o + l] = static_cast<float>(room.column_sums[l]);
    }
    write(o, count, vectors, i0, inputs, gain_sums ? gain_sums + task * sums_of_task() : nullptr, room);
  }

  int64_t sums_of_task() const { return p.transposed ? most_inputs : kLanes; }

  // The sum that the tasks found for output channel o.
  double gain_sum(int64_t o, const float* gain_sums) const {
    const int64_t of_group = p.transposed ? p.I : p.og, group = o / of_group, at = o % of_group;
    double sum = 0;
    if (p.transposed) {
      int64_t t = 0;
      while (at >= input_of_tile(last_tile(t))) ++t;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t task = (group * blocks + block) * tile_groups + t;
        sum += gain_sums[task * most_inputs + at - input_of_tile(first_tile(t))];
      }
      return sum;
    }
    for (int64_t t = 0; t < tile_groups; ++t) {
      sum += gain_sums[((group * blocks + at / kLanes) * tile_groups + t) * kLanes + at % kLanes];
    }
    return sum;
  }

  bool run() const {
    const int64_t tasks = p.groups * blocks * tile_groups;
    const size_t bytes = worker_bytes();
    const size_t gain_bytes = p.dgain ? tasks * sums_of_task() * sizeof(float) : 0;
    const int used = static_cast<int>(min64(workers, tasks));
    char* memory = static_cast<char*>(scratch(bytes * used + gain_bytes));
    if (memory == nullptr) return false;
    float* gain_sums = p.dgain ? reinterpret_cast<float*>(memory + bytes * used) : nullptr;
    if (gain_sums) memset(gain_sums, 0, gain_bytes);
    auto work = [&](int worker, int64_t task) { run_task(task, memory + worker * bytes, gain_sums); };
    for_each_task(tasks, used, work);
    if (gain_sums) {
      double total = 0;
      for (int64_t o = 0; o < p.O; ++o) {
        const double channel = gain_sum(o, gain_sums);
        if (p.gain_count > 1) p.dgain[o] = static_cast<float>(channel);
        total += channel;
      }
      if (p.gain_count == 1) p.dgain[0] = static_cast<float>(total);
    }
    return true;
  }
};

// dbias where dy is not what the weight gradient packs: the sums over pixels, line by line.
template <class T>
static void sum_of_dy(const ConvProblem& p, int workers) {
  const int64_t tasks = (p.O + Vec::width - 1) / Vec::width;
  auto work = [&](int, int64_t task) {
    const int64_t o = task * Vec::width;
    const int count = static_cast<int>(min64(Vec::width, p.O - o));
    double sums[Vec::width] = {};
    for (int64_t n = 0; n < p.N; ++n) {
      for (int64_t h = 0; h < p.OH; ++h) {
        const T* from = static_cast<const T*>(p.dy) + n * p.y_n + h * p.y_h + o;
        Vec line = Vec::zero();
        for (int64_t w = 0; w < p.OW; ++w, from += p.y_w) {
          line = line + (count == Vec::width ? load_vec(from) : load_vec(from, count));
        }
        float lanes[Vec::width];
        line.store(lanes);
        for (int l = 0; l < count; ++l) sums[l] += lanes[l];
      }
    }
    for (int l = 0; l < count; ++l) p.dbias[o + l] = static_cast<float>(sums[l]);
  };
  for_each_task(tasks, static_cast<int>(min64(workers, tasks)), work);
}

bool dense_weight_gradient(const ConvProblem& problem, int workers) {
  ConvProblem p = problem;
  if (p.transposed) {  // the gradient of the convolution that takes y to x: x and dy exchanged
    if (p.dbias) p.bf16 ? sum_of_dy<uint16_t>(p, workers) : sum_of_dy<float>(p, workers);
    p.dbias = nullptr;
    p.x = problem.dy, p.x_n = problem.y_n, p.x_h = problem.y_h, p.x_w = problem.y_w;
    p.dy = problem.x, p.y_n = problem.x_n, p.y_h = problem.x_h, p.y_w = problem.x_w;
    p.H = problem.OH, p.W = problem.OW, p.OH = problem.H, p.OW = problem.W;
  }
#if defined(WAT_BF16_PAIRS)
  const WeightGradient<uint16_t> pass(p, workers);
  return pass.fits() ? pass.run() : avx512::dense_weight_gradient(problem, workers);
#else
  return p.bf16 ? WeightGradient<uint16_t>(p, workers).run() : WeightGradient<float>(p, workers).run();
#endif
}

}  // namespace wat::WAT_ISA
