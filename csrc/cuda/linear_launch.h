// Which kernel a launch takes and how many blocks it has: for linear.cu, and for the emulation of it.
#pragma once

#include "linear_kernels.h"

namespace wat {

constexpr int64_t blocks_of(int64_t size, int64_t each) { return (size + each - 1) / each; }

// visit(T{}) for the type of the problem's matrices
template <class Visit>
void with_dtype(const LinearProblem& p, Visit visit) {
  if (p.dtype == kFloat) {
    visit(float{});
  } else if (p.dtype == kHalf) {
    visit(Half{});
  } else {
    visit(BFloat16{});
  }
}

// launch(kernel, blocks): all blocks have kThreads threads, and kernels one argument, the problem.
template <class Launch>
void linear_forward_with(const LinearProblem& p, Launch launch) {
  with_dtype(p, [&](auto type) {
    using T = decltype(type);
    if (p.rows <= 8) {
      launch(linear_forward<T, 1, 1>, dim3(static_cast<unsigned>(blocks_of(p.out, 16))));
    } else if (p.rows <= 32) {
      launch(linear_forward<T, 2, 4>, dim3(static_cast<unsigned>(blocks_of(p.out, 32))));
    } else {
      launch(linear_forward<T, 2, 8>, dim3(static_cast<unsigned>(blocks_of(p.out, 32))));
    }
  });
}

template <class Launch>
void linear_backward_data_with(const LinearProblem& p, Launch launch) {
  with_dtype(p, [&](auto type) {
    using T = decltype(type);
    const dim3 blocks(static_cast<unsigned>(blocks_of(p.in, kDataTile<T>)), static_cast<unsigned>(p.splits));
    if (p.rows <= 8) {
      launch(linear_backward_data<T, 1>, blocks);
    } else if (p.rows <= 32) {
      launch(linear_backward_data<T, 4>, blocks);
    } else {
      launch(linear_backward_data<T, 8>, blocks);
    }
    if (p.splits > 1) {
      launch(linear_add_parts<T>, dim3(static_cast<unsigned>(blocks_of(p.rows * p.in, kThreads))));
    }
  });
}

template <class Launch>
void linear_backward_weight_with(const LinearProblem& p, Launch launch) {
  const int64_t blocks = blocks_of(p.in, kTileIn) * blocks_of(p.out, kTileOut);
  with_dtype(p, [&](auto type) { launch(linear_backward_weight<decltype(type)>, dim3(static_cast<unsigned>(blocks))); });
}

}  // namespace wat
