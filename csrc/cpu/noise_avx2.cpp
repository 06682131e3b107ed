#if defined(__x86_64__)
#include "noise_problem.h"
#include "threads.h"

#include "target_avx2.h"

#include "noise_kernels.h"
#endif
