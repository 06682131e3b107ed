// The kernels, and which of them a launch takes: for depthwise.cu, and for the emulation of it.
#pragma once

#include "depthwise_generic.h"
#include "depthwise_plan.h"

namespace wat {

#if defined(__CUDACC__)
extern __shared__ __align__(128) char shared_memory[];
#else
alignas(128) static char shared_memory[kMostShared];
#endif

// An instance is a size of elements (0 for either), a layout, a number of taps and a stride; everything else is decided at
// run time, so that all of them are compiled in a minute.
template <int kElement, bool kLast, int kTaps, int S>
__global__ void __launch_bounds__(kDepthwiseThreads, kTaps == 7 ? 3 : 4) depthwise_gather(const WAT_GRID_CONSTANT DepthwiseProblem p) {
  gather_block<kElement, kLast, kTaps, S>(p, blockIdx.x, shared_memory);
}

template <int kElement, bool kLast, int kTaps, int S>
__global__ void __launch_bounds__(kDepthwiseThreads, 2) depthwise_weight(const WAT_GRID_CONSTANT DepthwiseProblem p) {
  weight_block<kElement, kLast, kTaps, S>(p, blockIdx.x, shared_memory);
}

template <class Nothing>
__global__ void __launch_bounds__(kDepthwiseThreads, 4) depthwise_gather_any(const WAT_GRID_CONSTANT DepthwiseProblem p) {
  gather_any_block(p, blockIdx.x, shared_memory);
}

template <class Nothing>
__global__ void __launch_bounds__(kDepthwiseThreads, 4) depthwise_weight_any(const WAT_GRID_CONSTANT DepthwiseProblem p) {
  weight_any_block(p, blockIdx.x, shared_memory);
}

using DepthwiseKernel = void (*)(DepthwiseProblem);

template <int kElement, bool kLast, int kTaps>
DepthwiseKernel pick_stride(int stride, bool weight) {
  if (weight) return stride == 1 ? depthwise_weight<kElement, kLast, kTaps, 1> : depthwise_weight<kElement, kLast, kTaps, 2>;
  return stride == 1 ? depthwise_gather<kElement, kLast, kTaps, 1> : depthwise_gather<kElement, kLast, kTaps, 2>;
}

template <int kElement, bool kLast>
DepthwiseKernel pick_taps(const DepthwiseChoice& choice, bool weight) {
  if (choice.taps == 3) return pick_stride<kElement, kLast, 3>(choice.stride, weight);
  if (choice.taps == 5) return pick_stride<kElement, kLast, 5>(choice.stride, weight);
  return pick_stride<kElement, kLast, 7>(choice.stride, weight);
}

inline DepthwiseKernel pick_kernel(const DepthwiseProblem& p, const DepthwiseChoice& choice, bool weight) {
  if (choice.taps == 0) return weight ? depthwise_weight_any<void> : depthwise_gather_any<void>;
  if (!p.channels_last) return pick_taps<0, false>(choice, weight);
  return p.element == 2 ? pick_taps<2, true>(choice, weight) : pick_taps<4, true>(choice, weight);
}

}  // namespace wat
