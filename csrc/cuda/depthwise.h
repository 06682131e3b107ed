// What depthwise.cpp, which knows torch, calls in depthwise.cu, which does not.
#pragma once

#include "depthwise_problem.h"

namespace wat {

// Launches on `stream` of `device`. Returns nullptr, or the reason of a failure in the words of the CUDA runtime.
const char* launch_depthwise(const DepthwiseProblem& p, const DepthwiseChoice& choice, bool weight, int device, void* stream);

}  // namespace wat
