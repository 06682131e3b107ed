#if defined(__x86_64__)
#include "linear.h"
#include "threads.h"

#include "target_avx512bf16.h"

#include "linear_backward.h"
#endif
