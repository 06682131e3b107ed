// What conv.cpp calls when I == 1 and og == 1 (groups == C == O). Pointers that are null in the problem (dx, dweight,
// dbias, dgain) are not wanted; dgain never comes without dweight. Both passes gather into `plan`'s destination: y for
// the forward, x for the backward, which makes dx and dweight in one pass over x and dy. False when scratch memory runs
// out.
#pragma once

#include "dense.h"

namespace wat {

WAT_DECLARE_BF16(bool depthwise_forward(const ConvProblem& p, const DensePlan& plan))
WAT_DECLARE_BF16(bool depthwise_backward(const ConvProblem& p, const DensePlan& plan))

}  // namespace wat
