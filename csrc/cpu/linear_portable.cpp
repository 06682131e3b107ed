#include "linear.h"
#include "threads.h"

#include "target_portable.h"

#include "linear_backward.h"
