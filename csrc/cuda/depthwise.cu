// The launches of depthwise.h. All that is computed is in the headers.
#include "depthwise.h"
#include "depthwise_launch.h"
#include "device.h"

namespace wat {

DepthwiseChoice prepare_depthwise(DepthwiseProblem& p, bool weight, int64_t multiprocessors) {
  return plan_depthwise(p, weight, multiprocessors);
}

const char* launch_depthwise(const DepthwiseProblem& p, const DepthwiseChoice& choice, bool weight, int device, uintptr_t stream) {
  const OnDevice on(device);
  const DepthwiseKernel kernel = pick_kernel(p, choice, weight);
  cudaError_t error = cudaSuccess;
  if (p.shared > 48 * 1024) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, p.shared);
  if (error == cudaSuccess) {
    const dim3 blocks(static_cast<unsigned>(static_cast<int64_t>(p.parts) * p.channel_blocks));
    kernel<<<blocks, kDepthwiseThreads, p.shared, reinterpret_cast<cudaStream_t>(stream)>>>(p);
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace wat
