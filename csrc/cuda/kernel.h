// What every kernel file begins with.
//
// Kernels are templates in headers, <name>_kernels.h, in CUDA's own words (threadIdx, __syncthreads, ...), and are compiled
// twice: by nvcc in <name>.cu, and by a C++ compiler in tests/cuda/emulate_<name>.cpp after tests/cuda/emulator.h has given
// these words a meaning on the CPU, thread by thread. So every line of a kernel can be executed without a GPU. What only a
// GPU can execute (`asm`) is in functions of a few lines with a C++ twin behind __CUDA_ARCH__, or emulated by the emulator; they are the exception.
#pragma once

#include "../common/host_device.h"

#if defined(__CUDACC__)
#define WAT_DEVICE static __device__ __forceinline__
// `type name[count]` in the shared memory of a block
#define WAT_SHARED(type, name, count) __shared__ type name[count]
#else
#define WAT_DEVICE static inline
#endif
