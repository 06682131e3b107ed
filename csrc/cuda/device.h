// The GPU that a launch is for, on the host.
#pragma once

#include <cuda_runtime_api.h>

namespace wat {

// "" where the kernels of this library run on `device`, else the reason in the words of the CUDA runtime.
const char* device_refusal(int device);

// Makes `device` the current one while it lives, then the context current that was so before. This library has a CUDA
// runtime of its own (it is linked statically), which does not know what torch told another runtime: it sets the device
// always, and what it puts back is what the driver says, not what its own runtime believes.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  void* before_ = nullptr;  // CUcontext
};

}  // namespace wat
