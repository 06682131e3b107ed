// What depthwise.cpp, which knows torch, calls in depthwise.cu, which does not.
#pragma once

#include "depthwise_problem.h"

namespace wat {

// Fills what is left open in `p` (depthwise_plan.h). `weight`: it is for the weight gradient.
DepthwiseChoice prepare_depthwise(DepthwiseProblem& p, bool weight, int64_t multiprocessors);

// Launches on the stream of this address. The message of an error, or nullptr.
const char* launch_depthwise(const DepthwiseProblem& p, const DepthwiseChoice& choice, bool weight, int device, uintptr_t stream);

}  // namespace wat
