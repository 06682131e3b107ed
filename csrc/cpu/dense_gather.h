// Forward and data gradient: one machine with the roles of input and output exchanged. Include after target_*.h.
//
// A panel of SW for a block of destination channels is packed once and stays in the second cache; register tiles of
// pixels run over it. After "The Indirect Convolution Algorithm" (Dukhan, arXiv 1907.02129), with classes of pixels
// (axis.h) in place of the pointer table.
#pragma once

#include "dense.h"
#include "dense_pack.h"
#include "dense_tile.h"
#include "threads.h"

namespace wat::WAT_ISA {

constexpr int64_t kPanelBytes = 640 << 10;        // panels that share a pass over the pixels
constexpr int64_t kLargestPanelBytes = 1216 << 10;  // one panel; a deeper one comes in parts
constexpr int64_t kPartialBytes = 256 << 10;      // partial sums of a pass, when the depth comes in parts
constexpr int64_t kBlockPixels = 1024;            // pixels of whole images that a task takes, or more

template <class T>
struct Gather {
  const ConvProblem& p;
  const DensePlan& plan;
  const bool gradient;
  bool over_rows;  // of the weight are the channels that are summed over, else its columns
  // one group's depth (channels summed over) and lanes (destination channels)
  int64_t depth, lanes;
  const T* source;
  T* destination;
  int64_t s_n, s_h, s_w, d_n, d_h, d_w;

  // cuts
  int64_t panels;         // panels of kLanes channels in a group
  int64_t panel_group;    // panels that share a pass
  int64_t panel_groups;
  int64_t part;           // depth of one part; one part unless a panel is very large
  int64_t images;         // images of a task
  int64_t image_blocks;   // of one shadow
  int64_t tile_slices;    // an image block's tiles are cut into so many tasks
  int64_t panel_floats;   // room for one panel
  int64_t partial_tiles;  // tiles of a pass when the depth comes in parts

  Gather(const ConvProblem& problem, const DensePlan& the_plan, bool data_gradient)
      : p(problem), plan(the_plan), gradient(data_gradient) {
    over_rows = gradient != p.transposed;
    depth = over_rows ? p.og : p.I, lanes = over_rows ? p.I : p.og;
    if (gradient) {
      source = static_cast<const T*>(p.dy), destination = static_cast<T*>(p.dx);
      s_n = p.y_n, s_h = p.y_h, s_w = p.y_w, d_n = p.dx_n, d_h = p.dx_h, d_w = p.dx_w;
    } else {
      source = static_cast<const T*>(p.x), destination = static_cast<T*>(p.y);
      s_n = p.x_n, s_h = p.x_h, s_w = p.x_w, d_n = p.y_n, d_h = p.y_h, d_w = p.y_w;
    }
    panels = (lanes + kLanes - 1) / kLanes;
    const int64_t row_bytes = p.K * kLanes * static_cast<int64_t>(sizeof(float));  // of one cell of the depth
    part = depth;
    if (cells(depth) * row_bytes > kLargestPanelBytes) {
      part = kCell * max64(1, kLargestPanelBytes / row_bytes);
      if (part > Vec::width) part -= part % Vec::width;
    }
    panel_floats = cells(part) * p.K * kLanes;
    panel_group = max64(1, min64(panels, kPanelBytes / max64(1, panel_floats * static_cast<int64_t>(sizeof(float)))));
    const int64_t pixels = max64(1, gradient ? p.H * p.W : p.OH * p.OW);
    images = min64(p.chunk, (kBlockPixels + pixels - 1) / pixels);
    image_blocks = (p.chunk + images - 1) / images;
    partial_tiles = kPartialBytes / (kTileRows * kLanes * static_cast<int64_t>(sizeof(float)));
    if (part < depth) panel_group = 1;
    tile_slices = 1;
    // enough tasks to keep the workers even: first fewer panels a task, then fewer tiles
    const int64_t wanted = plan.workers == 1 ? 1 : 4 * plan.workers;
    const int64_t units = image_blocks * p.shadows * p.groups;
    while (panel_group > 1 && units * ((panels + panel_group - 1) / panel_group) < wanted) --panel_group;
    panel_groups = (panels + panel_group - 1) / panel_group;
    panel_group = (panels + panel_groups - 1) / panel_groups;
    const int64_t tiles = images * pixels / kTileRows + 1;
    tile_slices = min64((wanted + units * panel_groups - 1) / (units * panel_groups), max64(1, tiles / 8));
    if (part < depth) tile_slices = max64(tile_slices, (tiles + partial_tiles - 1) / partial_tiles);
  }

  int64_t tasks() const { return p.shadows * p.groups * panel_groups * image_blocks * tile_slices; }

  size_t worker_bytes() const {
    const int64_t floats = panel_floats * panel_group + pack_scratch(p) + (part < depth ? kPartialBytes / 4 : 0) +
                           2 * kLanes * panel_group;
    return (floats * sizeof(float) + p.K * sizeof(TapStep) + p.K * sizeof(int64_t) + 63) / 64 * 64;
  }

  static int vectors_of(int64_t lanes_left) { return lanes_left <= Vec::width ? 1 : kTileVectors; }

  struct Room {
    float* panel;
    float* pack;
    float* partial;
    float* scale;
    float* bias;
    TapStep* steps;
    int64_t* slots;
  };

  Room room_of(char* memory) const {
    Room room;
    room.panel = reinterpret_cast<float*>(memory);
    room.pack = room.panel + panel_floats * panel_group;
    room.partial = room.pack + pack_scratch(p);
    room.scale = room.partial + (part < depth ? kPartialBytes / 4 : 0);
    room.bias = room.scale + kLanes * panel_group;
    room.steps = reinterpret_cast<TapStep*>(room.bias + kLanes * panel_group);
    room.slots = reinterpret_cast<int64_t*>(room.steps + p.K);
    return room;
  }

  void pack(const TapRow& row, int64_t shadow, int64_t group, int64_t first_panel, int64_t k0, int64_t k1,
            const Room& room) const {
    const NoiseStream noise = noise_stream(p.noise, p.amount, p.key, shadow);
    for (int64_t b = 0; b < panel_group && first_panel + b < panels; ++b) {
      const int64_t lane = (first_panel + b) * kLanes, count = min64(kLanes, lanes - lane);
      float* panel = room.panel + b * panel_floats;
      if (over_rows) {
        pack_over_rows<T>(p, row, noise, group * p.og, lane, count, vectors_of(count), k0, k1, panel, room.pack);
      } else {
        pack_over_columns<T>(p, row, noise, group * p.og + lane, count, vectors_of(count), k0, k1, panel, room.pack);
      }
      if (gradient) {  // one gain for all outputs; what stands on the sum is in the panel
        for (int64_t l = 0; l < kLanes; ++l) room.scale[b * kLanes + l] = p.gain ? p.gain[0] : 1.0f;
      } else {
        for (int64_t l = 0; l < kLanes; ++l) {
          const int64_t o = group * lanes + lane + min64(l, count - 1);
          room.scale[b * kLanes + l] = p.gain ? p.gain[p.gain_count == 1 ? 0 : o] : 1.0f;
          room.bias[b * kLanes + l] = p.bias ? p.bias[o] : 0.0f;
        }
      }
    }
  }

  // Taps of the row that this pair of classes reads: steps[a].offset from a pixel's origin, and the panel's slot.
  int64_t active_steps(const TapRow& row, const AxisClass& rows, const AxisClass& columns, const Room& room) const {
    int64_t n = 0;
    const int active = tap_count(row);
    for (int j = 0; j < active; ++j) {
      const int64_t tap = tap_output(row, j);
      const int64_t r = tap / p.kw - rows.tap_first, c = tap % p.kw - columns.tap_first;
      if (r < 0 || c < 0 || r % rows.tap_step || c % columns.tap_step) continue;
      const int64_t a = r / rows.tap_step, b = c / columns.tap_step;
      if (a >= rows.tap_count || b >= columns.tap_count) continue;
      room.steps[n].offset = a * rows.source_per_tap * s_h + b * columns.source_per_tap * s_w;
      room.slots[n++] = j;
    }
    return n;
  }

  // Tiles [begin, end) of images [n0, n1), counted through all classes; the depth [k0, k1).
  void run_tiles(const TapRow& row, int64_t group, int64_t first_panel, int64_t n0, int64_t n1, int64_t begin,
                 int64_t end, int64_t k0, int64_t k1, const Room& room) const {
    int64_t counted = 0;
    const int64_t part_depth = k1 - k0;
    const T* from = source + group * depth + k0;
    T* to = destination + group * lanes + first_panel * kLanes;
    for (int rc = 0; rc < plan.row_classes; ++rc) {
      for (int cc = 0; cc < plan.column_classes; ++cc) {
        const AxisClass& rows = plan.rows[rc];
        const AxisClass& columns = plan.columns[cc];
        const int64_t pixels = (n1 - n0) * rows.count * columns.count;
        const int64_t tiles = (pixels + kTileRows - 1) / kTileRows;
        const int64_t first_tile = max64(begin - counted, 0), last_tile = min64(end - counted, tiles);
        counted += tiles;
        if (first_tile >= last_tile) continue;
        const int64_t steps = active_steps(row, rows, columns, room);
        // even tiles: `longer` of them have one pixel more
        const int64_t shorter = pixels / tiles, longer = pixels % tiles;
        int64_t pixel = first_tile * shorter + min64(first_tile, longer);
        int64_t column = pixel % columns.count, line = pixel / columns.count % rows.count;
        int64_t image = n0 + pixel / columns.count / rows.count;
        for (int64_t tile = first_tile; tile < last_tile; ++tile) {
          const int size = static_cast<int>(shorter + (tile < longer));
          const T* sources[kTileRows];
          T* destinations[kTileRows];
          for (int r = 0; r < size; ++r) {
            sources[r] = from + image * s_n + (rows.source + line * rows.source_per_position) * s_h +
                         (columns.source + column * columns.source_per_position) * s_w;
            destinations[r] =
                to + image * d_n + (rows.first + line * rows.step) * d_h + (columns.first + column * columns.step) * d_w;
            if (++column == columns.count) {
              column = 0;
              if (++line == rows.count) line = 0, ++image;
            }
          }
          for (int64_t b = 0; b < panel_group && first_panel + b < panels; ++b) {
            const int64_t count = min64(kLanes, lanes - (first_panel + b) * kLanes);
            const int vectors = vectors_of(count);
            const float* panel = room.panel + b * panel_floats;
            for (int64_t a = 0; a < steps; ++a) {
              room.steps[a].panel = panel + room.slots[a] * cells(part_depth) * vectors * Vec::width;
            }
            TileOutput out;
            out.scale = p.gain && (!gradient || p.gain_count == 1) ? room.scale + b * kLanes : nullptr;
            out.bias = p.bias && !gradient ? room.bias + b * kLanes : nullptr;
            out.first = k0 == 0;
            out.last = k1 == depth;
            out.partial = part < depth ? room.partial + (counted - tiles + tile - begin) * kTileRows * kLanes : nullptr;
            out.lanes = static_cast<int>(count);
            gather_tile_of<T>(size, vectors)(sources, destinations, room.steps, steps, part_depth, out);
            for (int r = 0; r < size; ++r) destinations[r] += kLanes;
          }
        }
      }
    }
  }

  int64_t tiles_of(int64_t block_images) const {
    int64_t tiles = 0;
    for (int rc = 0; rc < plan.row_classes; ++rc) {
      for (int cc = 0; cc < plan.column_classes; ++cc) {
        const int64_t pixels = block_images * plan.rows[rc].count * plan.columns[cc].count;
        tiles += (pixels + kTileRows - 1) / kTileRows;
      }
    }
    return tiles;
  }

  // `packed` is what the worker's panels hold: tasks that follow each other pack once.
  void run_task(int64_t task, int64_t& packed, char* memory) const {
    const Room room = room_of(memory);
    const int64_t slice = task % tile_slices;
    const int64_t block = task / tile_slices % image_blocks;
    const int64_t packing = task / tile_slices / image_blocks;
    const int64_t first_panel = packing % panel_groups * panel_group;
    const int64_t group = packing / panel_groups % p.groups;
    const int64_t shadow = packing / panel_groups / p.groups;
    const TapRow row = forward_taps(p, shadow_row(p, shadow));
    const int64_t n0 = shadow * p.chunk + block * images, n1 = min64(n0 + images, (shadow + 1) * p.chunk);
    const int64_t tiles = tiles_of(n1 - n0);
    const int64_t begin = tiles * slice / tile_slices, end = tiles * (slice + 1) / tile_slices;
    if (part == depth) {
      if (packed != packing) pack(row, shadow, group, first_panel, 0, depth, room);
      packed = packing;
      run_tiles(row, group, first_panel, n0, n1, begin, end, 0, depth, room);
      return;
    }
    for (int64_t at = begin; at < end; at += partial_tiles) {  // as many tiles as have room for their partial sums
      for (int64_t k = 0; k < depth; k += part) {
        const int64_t stop = min64(k + part, depth);
        pack(row, shadow, group, first_panel, k, stop, room);
        run_tiles(row, group, first_panel, n0, n1, at, min64(at + partial_tiles, end), k, stop, room);
      }
    }
  }

  bool run() const {
    const size_t bytes = worker_bytes();
    constexpr int kMostWorkers = 256;
    int64_t packed[kMostWorkers];
    const int workers = static_cast<int>(min64(min64(plan.workers, kMostWorkers), tasks()));
    for (int worker = 0; worker < workers; ++worker) packed[worker] = -1;
    char* memory = static_cast<char*>(scratch(bytes * workers));
    if (memory == nullptr) return false;
    auto work = [&](int worker, int64_t task) { run_task(task, packed[worker], memory + worker * bytes); };
    for_each_task(tasks(), workers, work);
    return true;
  }
};

#if defined(WAT_BF16_PAIRS)

bool dense_forward(const ConvProblem& p, const DensePlan& plan) { return Gather<uint16_t>(p, plan, false).run(); }

bool dense_data_gradient(const ConvProblem& p, const DensePlan& plan) { return Gather<uint16_t>(p, plan, true).run(); }

#else

bool dense_forward(const ConvProblem& p, const DensePlan& plan) {
  return p.bf16 ? Gather<uint16_t>(p, plan, false).run() : Gather<float>(p, plan, false).run();
}

bool dense_data_gradient(const ConvProblem& p, const DensePlan& plan) {
  return p.bf16 ? Gather<uint16_t>(p, plan, true).run() : Gather<float>(p, plan, true).run();
}

#endif

}  // namespace wat::WAT_ISA
