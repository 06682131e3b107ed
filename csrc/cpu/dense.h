// The dense convolution: what conv.cpp calls, and the plan that it makes in plain C++ for the kernels.
#pragma once

#include "axis.h"
#include "conv_problem.h"
#include "isa.h"

namespace wat {

// Classes of the destination's rows and columns (axis.h), for the forward (destination y) or the data gradient (dx). Those
// of a transposed convolution are exchanged.
struct DensePlan {
  const AxisClass* rows;
  const AxisClass* columns;
  int row_classes, column_classes;
  int workers;
};

// Each returns false when scratch memory runs out.
WAT_DECLARE_BF16(bool dense_forward(const ConvProblem& p, const DensePlan& plan))
WAT_DECLARE_BF16(bool dense_data_gradient(const ConvProblem& p, const DensePlan& plan))
// dweight, and dbias and dgain where the problem points to them.
WAT_DECLARE_BF16(bool dense_weight_gradient(const ConvProblem& p, int workers))

}  // namespace wat
