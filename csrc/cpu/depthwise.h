// What conv.cpp calls when I == 1 and og == 1 (groups == C == O). Pointers that are null in the problem (dx, dweight,
// dbias, dgain) are not wanted; dgain never comes without dweight. False when scratch memory runs out.
#pragma once

#include "conv_problem.h"
#include "isa.h"

namespace wat {

WAT_DECLARE(bool depthwise_forward(const ConvProblem& p))
WAT_DECLARE(bool depthwise_backward(const ConvProblem& p))

}  // namespace wat
