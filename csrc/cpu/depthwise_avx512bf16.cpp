#if defined(__x86_64__)
#include "depthwise.h"
#include "threads.h"

#include "target_avx512bf16.h"

#include "depthwise_backward.h"
#endif
