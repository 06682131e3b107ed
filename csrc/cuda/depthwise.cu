// The compiled depthwise kernels and their launch. An instance is a dtype's size, a layout, a number of taps and a stride;
// everything else is decided at run time.
#include "depthwise.h"
#include "depthwise_generic.h"
#include "device.h"

namespace wat {
namespace {

extern __shared__ __align__(128) char shared_memory[];

template <int kElement, bool kLast, int kTaps, int S>
__global__ void __launch_bounds__(kDepthwiseThreads, 4) depthwise_gather(const __grid_constant__ DepthwiseProblem p) {
  gather_block<kElement, kLast, kTaps, S>(p, blockIdx.x, shared_memory);
}

template <int kElement, bool kLast, int kTaps, int S>
__global__ void __launch_bounds__(kDepthwiseThreads, 2) depthwise_weight(const __grid_constant__ DepthwiseProblem p) {
  weight_block<kElement, kLast, kTaps, S>(p, blockIdx.x, shared_memory);
}

__global__ void __launch_bounds__(kDepthwiseThreads) depthwise_gather_any(const __grid_constant__ DepthwiseProblem p) {
  gather_any_block(p, blockIdx.x, shared_memory);
}

__global__ void __launch_bounds__(kDepthwiseThreads) depthwise_weight_any(const __grid_constant__ DepthwiseProblem p) {
  weight_any_block(p, blockIdx.x, shared_memory);
}

using Kernel = void (*)(DepthwiseProblem);

template <int kElement, bool kLast, int kTaps>
Kernel pick_stride(int stride, bool weight) {
  if (weight) return stride == 1 ? depthwise_weight<kElement, kLast, kTaps, 1> : depthwise_weight<kElement, kLast, kTaps, 2>;
  return stride == 1 ? depthwise_gather<kElement, kLast, kTaps, 1> : depthwise_gather<kElement, kLast, kTaps, 2>;
}

template <int kElement, bool kLast>
Kernel pick_taps(const DepthwiseChoice& choice, bool weight) {
  if (choice.taps == 3) return pick_stride<kElement, kLast, 3>(choice.stride, weight);
  if (choice.taps == 5) return pick_stride<kElement, kLast, 5>(choice.stride, weight);
  return pick_stride<kElement, kLast, 7>(choice.stride, weight);
}

Kernel pick(const DepthwiseProblem& p, const DepthwiseChoice& choice, bool weight) {
  if (choice.taps == 0) return weight ? depthwise_weight_any : depthwise_gather_any;
  if (p.element == 2) return p.channels_last ? pick_taps<2, true>(choice, weight) : pick_taps<2, false>(choice, weight);
  return p.channels_last ? pick_taps<4, true>(choice, weight) : pick_taps<4, false>(choice, weight);
}

}  // namespace

const char* launch_depthwise(const DepthwiseProblem& p, const DepthwiseChoice& choice, bool weight, int device, void* stream) {
  const OnDevice on(device);
  const Kernel kernel = pick(p, choice, weight);
  cudaError_t error = cudaSuccess;
  if (p.shared > 48 * 1024) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, p.shared);
  if (error == cudaSuccess) {
    const dim3 grid(static_cast<unsigned>(static_cast<int64_t>(p.parts) * p.channel_blocks));
    kernel<<<grid, kDepthwiseThreads, p.shared, static_cast<cudaStream_t>(stream)>>>(p);
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace wat
