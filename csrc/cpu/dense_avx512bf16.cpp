// The dense convolution of bf16 tensors for avx512bf16 (isa.h says how).
#if defined(__x86_64__)
#include "dense.h"
#include "threads.h"

#include "target_avx512bf16.h"

#include "dense_gather.h"
#include "dense_weight_gradient.h"
#endif
