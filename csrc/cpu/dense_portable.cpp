// The dense convolution for portable (isa.h says how).
#include "dense.h"
#include "threads.h"

#include "target_portable.h"

#include "dense_gather.h"
#include "dense_weight_gradient.h"
