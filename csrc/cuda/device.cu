#include "device.h"

namespace wat {
namespace {

__global__ void any_kernel() {}

}  // namespace

const char* device_refusal(int device) {
  const OnDevice on(device);
  cudaFuncAttributes attributes;
  cudaError_t error = cudaFuncGetAttributes(&attributes, any_kernel);
  if (error == cudaSuccess) return "";
  (void)cudaGetLastError();  // a refusal is no error that a later launch should report
  return cudaGetErrorString(error);
}

OnDevice::OnDevice(int device) {
  if (cudaGetDevice(&before_) != cudaSuccess || before_ == device) {
    before_ = -1;
    return;
  }
  (void)cudaSetDevice(device);
}

OnDevice::~OnDevice() {
  if (before_ >= 0) (void)cudaSetDevice(before_);
}

}  // namespace wat
