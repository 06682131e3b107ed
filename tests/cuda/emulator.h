// CUDA's words for a compiler of C++: the kernels of csrc/cuda, text unchanged, run on the CPU.
//
//   emulate(order, grid, block, [&] { some_kernel<float>(arguments); });
//
// Blocks run one after the other. The threads of a block are fibers: one runs until it reaches a barrier
// (__syncthreads, or a collective of its warp), then the next; when all have arrived they go on. Shared memory is one
// array, filled with NaN before each block. `order` is the order of the threads between barriers: 0 ascending,
// 1 descending. A kernel that lacks a barrier gives other results in one of them.
// A thread that does not arrive where others wait stops the program with a line that says so.
//
// Include this before the kernels, in one .cpp of a library: its state is static.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

static dim3 threadIdx, blockIdx, blockDim, gridDim;

#define __global__ static
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define WAT_SHARED(type, name, count) \
  type(&name)[count] = *reinterpret_cast<type(*)[count]>(emulator::shared(sizeof(type[count]), __COUNTER__))

namespace emulator {

constexpr size_t kStack = 256 << 10;
constexpr unsigned kWarp = 32;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 index;
  bool finished;
  const char* waits_for;  // the barrier it stands at, or nullptr
};

static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static unsigned current, threads;  // of the block
static const std::function<void()>* body;
static std::vector<std::vector<char>> shared_arrays;  // by the number of the declaration
static uint64_t warp_words[1024][32];                 // what each thread of a block shows its warp

static void* shared(size_t bytes, unsigned declaration) {
  if (shared_arrays.size() <= declaration) shared_arrays.resize(declaration + 1);
  auto& array = shared_arrays[declaration];
  if (array.size() != bytes) array.assign(bytes, char(0xFF));  // NaN in every format
  return array.data();
}

static void enter() {
  (*body)();
  fibers[current].finished = true;
  swapcontext(&fibers[current].context, &scheduler);
}

static void wait(const char* barrier) {
  fibers[current].waits_for = barrier;
  swapcontext(&fibers[current].context, &scheduler);
}

[[noreturn]] static inline void stop(const char* what) {
  fprintf(stderr, "emulator: %s (block %u %u %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z);
  abort();
}

static void run(unsigned thread) {
  current = thread;
  threadIdx = fibers[thread].index;
  swapcontext(&scheduler, &fibers[thread].context);
}

// Runs the threads [first, last) until all of them stand at the same barrier or have finished.
static void run_all(unsigned first, unsigned last, int order, const char* past) {
  for (unsigned n = 0; n < last - first; ++n) {
    const unsigned thread = order == 0 ? first + n : last - 1 - n;
    Fiber& fiber = fibers[thread];
    if (fiber.finished || (fiber.waits_for != nullptr && fiber.waits_for != past)) continue;
    fiber.waits_for = nullptr;
    run(thread);
  }
}

static const char kBlock[] = "__syncthreads", kWarpBarrier[] = "a collective of a warp";

static void run_block(int order) {
  const char* past = nullptr;
  for (;;) {
    // each warp goes on by itself until all of its threads wait for the whole block
    for (unsigned w = 0; w < threads; w += kWarp) {
      const unsigned first = order == 0 ? w : (threads - 1 - w) / kWarp * kWarp;
      const unsigned last = first + kWarp < threads ? first + kWarp : threads;
      const char* at = past;
      for (;;) {
        run_all(first, last, order, at);
        unsigned in_warp = 0, finished = 0;
        for (unsigned t = first; t < last; ++t) {
          finished += fibers[t].finished;
          in_warp += !fibers[t].finished && fibers[t].waits_for == kWarpBarrier;
        }
        if (in_warp == 0) break;
        if (in_warp != last - first) stop("not all threads of a warp take part in a collective");
        at = kWarpBarrier;
      }
    }
    unsigned finished = 0;
    for (unsigned t = 0; t < threads; ++t) finished += fibers[t].finished;
    if (finished == threads) return;
    if (finished != 0) stop("a thread has returned while others wait at __syncthreads");
    past = kBlock;
  }
}

}  // namespace emulator

static inline void __syncthreads() { emulator::wait(emulator::kBlock); }
static inline void __syncwarp() { emulator::wait(emulator::kWarpBarrier); }

// Shows `mine` to the warp; others(lane) then reads what the thread of that lane showed. Of at most 256 bytes.
template <class T>
struct WarpExchange {
  explicit WarpExchange(const T& mine) {
    static_assert(sizeof(T) <= sizeof(emulator::warp_words[0]), "too much for one exchange");
    memcpy(emulator::warp_words[emulator::current], &mine, sizeof(T));
    __syncwarp();
  }
  ~WarpExchange() { __syncwarp(); }  // before anyone shows the next
  T others(unsigned lane) const {
    T value;
    memcpy(&value, emulator::warp_words[emulator::current / emulator::kWarp * emulator::kWarp + lane], sizeof(T));
    return value;
  }
};

template <class T>
static inline T __shfl_xor_sync(unsigned, T value, int mask) {
  const WarpExchange<T> exchange(value);
  return exchange.others((emulator::current % emulator::kWarp) ^ mask);
}

static inline void emulate(int order, dim3 grid, dim3 block, const std::function<void()>& body) {
  using namespace emulator;
  gridDim = grid, blockDim = block;
  emulator::body = &body;
  threads = block.x * block.y * block.z;
  if (fibers.size() < threads) fibers.resize(threads);
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
        for (auto& array : shared_arrays) std::fill(array.begin(), array.end(), char(0xFF));
        for (unsigned t = 0; t < threads; ++t) {
          Fiber& fiber = fibers[t];
          if (!fiber.stack) fiber.stack.reset(new char[kStack]);
          fiber.index = dim3(t % block.x, t / block.x % block.y, t / (block.x * block.y));
          fiber.finished = false;
          fiber.waits_for = nullptr;
          getcontext(&fiber.context);
          fiber.context.uc_stack.ss_sp = fiber.stack.get();
          fiber.context.uc_stack.ss_size = kStack;
          fiber.context.uc_link = &scheduler;
          makecontext(&fiber.context, &enter, 0);
        }
        run_block(order);
      }
    }
  }
}
