// The GPU that a launch is for, on the host.
#pragma once

#include <cuda_runtime_api.h>

namespace wat {

// "" where the kernels of this library run on `device`, else the reason in the words of the CUDA runtime.
const char* device_refusal(int device);

// Makes `device` the current one while it lives. This library has a CUDA runtime of its own (it is linked statically), so
// it sets the device itself rather than rely on what torch told another runtime.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = -1;
};

}  // namespace wat
