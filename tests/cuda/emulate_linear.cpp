// The linear kernels on the CPU, registered as the ops that csrc/cuda/linear.cpp registers for the GPU: the same file, the
// same choice of kernels, the same kernels; only `kernel<<<blocks, threads>>>(p)` is another.
#define WAT_DISPATCH_KEY CPU

#include "emulator.h"
#include "emulator_mma.h"

#include "../../csrc/cuda/linear.cpp"
#include "../../csrc/cuda/linear_launch.h"

namespace wat {

static int order = 0;

struct Emulate {
  const LinearProblem& p;
  template <class Kernel>
  void operator()(Kernel kernel, dim3 blocks) const {
    emulate(order, blocks, kThreads, [&] { kernel(p); });
  }
};

const char* launch_linear_forward(const LinearProblem& p, int, uintptr_t) {
  linear_forward_with(p, Emulate{p});
  return nullptr;
}

const char* launch_linear_backward_data(const LinearProblem& p, int, uintptr_t) {
  linear_backward_data_with(p, Emulate{p});
  return nullptr;
}

const char* launch_linear_backward_weight(const LinearProblem& p, int, uintptr_t) {
  linear_backward_weight_with(p, Emulate{p});
  return nullptr;
}

}  // namespace wat

// Of the threads between barriers: 0 ascending, 1 descending.
extern "C" void set_order(int order) { wat::order = order; }
