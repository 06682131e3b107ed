#include "depthwise.h"
#include "threads.h"

#include "target_portable.h"

#include "depthwise_backward.h"
