// A CUDA driver that does nothing: what Triton loads, asks and launches through it returns at once. With it in the place of
// libcuda.so.1, the host's share of a launch can be measured on a machine without a GPU (see host_time.py).
#include <stddef.h>
#include <stdint.h>

enum { kMaxThreads = 0, kMaxSharedOptin = 97, kMultiprocessors = 16 };  // of CUfunction_attribute and CUdevice_attribute

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == kMaxSharedOptin ? 232448 : attribute == kMultiprocessors ? 132 : 0;  // an H100's
  return 0;
}

int cuFuncGetAttribute(int* value, int attribute, void* function) {
  *value = attribute == kMaxThreads ? 1024 : 0;
  return 0;
}

int cuPointerGetAttribute(uint64_t* data, int attribute, uint64_t pointer) {
  *data = pointer;
  return 0;
}

int cuCtxGetCurrent(void** context) {
  *context = (void*)1;
  return 0;
}

int cuModuleLoadData(void** module, const void* image) {
  *module = (void*)1;
  return 0;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = (void*)1;
  return 0;
}

int cuGetErrorString(int error, const char** text) {
  *text = "";
  return 0;
}

int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return 0;
}

int cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* address) { return 0; }  // of twelve arguments
int cuLaunchKernelEx(const void* configuration, void* function, void** arguments, void** extra) { return 0; }
int cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(void* function, int configuration) { return 0; }
int cuCtxSetCurrent(void* context) { return 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { return cuCtxGetCurrent(context); }
int cuCtxGetLimit(size_t* value, int limit) { return 0; }
int cuCtxSetLimit(int limit, size_t value) { return 0; }
