// What a function shared by the CPU and the GPU is declared with.
#pragma once

#if defined(__CUDACC__)
#define WAT_HOST_DEVICE __host__ __device__ __forceinline__
#define WAT_HOST_DEVICE_MEMBER __host__ __device__ __forceinline__
#else
// `static`: a function compiled for AVX-512 must never be merged by the linker into the portable path
#define WAT_HOST_DEVICE static inline __attribute__((always_inline, unused))
#define WAT_HOST_DEVICE_MEMBER inline __attribute__((always_inline))
#endif

// before a loop whose arrays are to be registers, and before one whose unrolled body would need too many of them
#if defined(__CUDA_ARCH__)
#define WAT_UNROLL _Pragma("unroll")
#define WAT_KEEP_LOOP _Pragma("unroll 1")
#else
#define WAT_UNROLL
#define WAT_KEEP_LOOP
#endif
