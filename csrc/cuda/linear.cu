// The launches of linear.h. All that is computed is in linear_kernels.h.
#include "device.h"
#include "linear_launch.h"

namespace wat {
namespace {

template <class Choose>
const char* launch_on(int device, uintptr_t stream, const LinearProblem& p, Choose choose) {
  const OnDevice on(device);
  choose(p, [&](auto kernel, dim3 blocks) { kernel<<<blocks, kThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(p); });
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* launch_linear_forward(const LinearProblem& p, int device, uintptr_t stream) {
  return launch_on(device, stream, p, [](const LinearProblem& p, auto launch) { linear_forward_with(p, launch); });
}

const char* launch_linear_backward_data(const LinearProblem& p, int device, uintptr_t stream) {
  return launch_on(device, stream, p, [](const LinearProblem& p, auto launch) { linear_backward_data_with(p, launch); });
}

const char* launch_linear_backward_weight(const LinearProblem& p, int device, uintptr_t stream) {
  return launch_on(device, stream, p, [](const LinearProblem& p, auto launch) { linear_backward_weight_with(p, launch); });
}

}  // namespace wat
