#include "device.h"

#include <dlfcn.h>

namespace wat {
namespace {

__global__ void any_kernel() {}

// The two functions of the driver that OnDevice needs. They are looked up, so that the library loads without a driver.
struct Driver {
  int (*get_current)(void**);
  int (*set_current)(void*);
};

const Driver& driver() {
  static const Driver found = [] {
    void* library = dlopen("libcuda.so.1", RTLD_LAZY);
    Driver functions{};
    if (library != nullptr) {
      functions.get_current = reinterpret_cast<int (*)(void**)>(dlsym(library, "cuCtxGetCurrent"));
      functions.set_current = reinterpret_cast<int (*)(void*)>(dlsym(library, "cuCtxSetCurrent"));
    }
    return functions;
  }();
  return found;
}

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
  const Driver& functions = driver();
  if (functions.get_current != nullptr) (void)functions.get_current(&before_);
  (void)cudaSetDevice(device);
}

OnDevice::~OnDevice() {
  const Driver& functions = driver();
  if (before_ != nullptr && functions.set_current != nullptr) (void)functions.set_current(before_);
}

}  // namespace wat
