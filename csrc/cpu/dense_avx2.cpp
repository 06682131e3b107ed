// The dense convolution for avx2 (isa.h says how).
#if defined(__x86_64__)
#include "dense.h"
#include "threads.h"

#include "target_avx2.h"

#include "dense_gather.h"
#include "dense_weight_gradient.h"
#endif
