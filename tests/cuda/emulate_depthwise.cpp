// The depthwise kernels on the CPU, registered as the ops that csrc/cuda/depthwise.cpp registers for the GPU: the same file,
// the same plan, the same kernels; only `kernel<<<blocks, threads>>>(p)` is another.
#define WAT_DISPATCH_KEY CPU

#include "emulator.h"

#include "../../csrc/cuda/depthwise.cpp"
#include "../../csrc/cuda/depthwise_launch.h"

namespace wat {

static int order = 0;
static DepthwiseChoice last_choice;
static DepthwiseProblem last_problem;

DepthwiseChoice prepare_depthwise(DepthwiseProblem& p, bool weight, int64_t multiprocessors) {
  return plan_depthwise(p, weight, multiprocessors);
}

const char* launch_depthwise(const DepthwiseProblem& p, const DepthwiseChoice& choice, bool weight, int, uintptr_t) {
  if (p.shared > kMostShared) return "more shared memory than a block has";
  last_choice = choice, last_problem = p;
  const DepthwiseKernel kernel = pick_kernel(p, choice, weight);
  const unsigned blocks = static_cast<unsigned>(p.parts * p.channel_blocks);
  for (unsigned block = 0; block < blocks; ++block) {
    // what is left of another block, or past the end, is NaN
    memset(shared_memory, 0xFF, sizeof(shared_memory));
    emulate(order, 1, kDepthwiseThreads, [&] {
      blockIdx.x = block;
      kernel(p);
    });
  }
  return nullptr;
}

}  // namespace wat

// Of the threads between barriers: 0 ascending, 1 descending.
extern "C" void set_order(int order) { wat::order = order; }

// Of the last launch: taps and stride of its kernel (0 taps: the generic one), channels of a block, rows and columns of a
// tile, parts, bytes of shared memory.
extern "C" void last_launch(int64_t* out) {
  const wat::DepthwiseProblem& p = wat::last_problem;
  const int64_t values[] = {wat::last_choice.taps, wat::last_choice.stride, p.channels, p.tile_rows, p.tile_columns, p.parts, p.shared};
  for (int i = 0; i < 7; ++i) out[i] = values[i];
}
