#include "noise_problem.h"
#include "threads.h"

#include "target_portable.h"

#include "noise_kernels.h"
