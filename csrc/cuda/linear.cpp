// The launches of linear.h as torch ops that write into tensors they are given: wat_kernels/ops/linear/cuda.py defines the
// schemas, allocates, and says on which stream. Arguments in, LinearProblem filled, kernel launched.
#include "linear.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../common/check.h"

#ifndef WAT_DISPATCH_KEY
#define WAT_DISPATCH_KEY CUDA  // the emulation of the kernels registers itself for the CPU
#endif

namespace wat {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr char kOp[] = "shadow_linear.cuda";

int dtype_of(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  WAT_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16,
            "accepted are float32, float16 and bfloat16");
  return type == ScalarType::Float ? kFloat : type == ScalarType::Half ? kHalf : kBFloat16;
}

Matrix matrix(const Tensor& t, int dtype, int64_t rows, int64_t columns, const char* name) {
  WAT_CHECK(t.dim() == 2 && t.size(0) == rows && t.size(1) == columns && dtype_of(t) == dtype, name,
            " must be (", rows, ", ", columns, ") of the dtype of the weight");
  const int64_t row = t.stride(0), column = t.stride(1);
  void* data = const_cast<void*>(t.const_data_ptr());
  const bool whole = (column == 1 || columns <= 1) && row * static_cast<int64_t>(t.element_size()) % 16 == 0;
  return {data, row, column, whole && reinterpret_cast<uintptr_t>(data) % 16 == 0};
}

Vector vector(const std::optional<Tensor>& t, int64_t size, bool one_for_all, const char* name) {
  if (!t.has_value()) return {nullptr, 0, kFloat};
  const bool one = one_for_all && t->numel() == 1;
  WAT_CHECK(one || (t->dim() == 1 && t->numel() == size), name, " has ", t->numel(),
            " elements, accepted is ", size);
  return {t->const_data_ptr(), one ? 0 : t->stride(0), dtype_of(*t)};
}

// What all passes have.
LinearProblem problem(const Tensor& rows, const Tensor& weight, const std::optional<Tensor>& gain, const Tensor& key,
                      const std::optional<Tensor>& thresholds, const std::optional<Tensor>& grid, int64_t shadows,
                      int64_t noise, double amount) {
  LinearProblem p{};
  p.rows = rows.size(0), p.out = weight.size(0), p.in = weight.size(1);
  WAT_CHECK(p.rows <= kMostRows, p.rows, " rows; accepted are at most ", kMostRows);
  WAT_CHECK(shadows >= 1 && p.rows % shadows == 0, "shadows=", shadows, " does not divide the ", p.rows, " rows of x");
  WAT_CHECK(key.numel() == 1 && key.scalar_type() == ScalarType::Long, "key must be one int64");
  WAT_CHECK(grid.has_value() == thresholds.has_value(), "grid and grid_thresholds come together");
  p.shadows = shadows, p.chunk = p.rows / shadows;
  p.dtype = dtype_of(weight);
  p.weight = matrix(weight, p.dtype, p.out, p.in, "weight");
  p.gain = vector(gain, p.out, true, "gain");
  p.bias = {nullptr, 0, kFloat};
  p.key = static_cast<const int64_t*>(key.const_data_ptr());
  if (grid.has_value()) {
    WAT_CHECK(grid->dim() == 2 && grid->size(0) >= 1 && grid->size(1) == 4 && grid->is_contiguous() &&
                  thresholds->numel() == grid->size(0) && thresholds->is_contiguous() &&
                  grid->scalar_type() == ScalarType::Long && thresholds->scalar_type() == ScalarType::Long,
              "grid must be (R, 4) int64 and grid_thresholds (R,) int64");
    p.grid = static_cast<const int64_t*>(grid->const_data_ptr());
    p.thresholds = static_cast<const int64_t*>(thresholds->const_data_ptr());
    p.grid_rows = grid->size(0);
  }
  p.noise = noise_kind(noise, amount);
  p.splits = 1;
  return p;
}

using Launch = const char* (*)(const LinearProblem&, int, uintptr_t);

void run(Launch launch, const LinearProblem& p, const Tensor& on, int64_t stream) {
  const char* error = launch(p, on.get_device(), static_cast<uintptr_t>(stream));
  WAT_CHECK(error == nullptr, error);
}

void forward(const Tensor x, const Tensor weight, const std::optional<Tensor> bias, const std::optional<Tensor> gain,
             const Tensor key, const std::optional<Tensor> thresholds, const std::optional<Tensor> grid, int64_t shadows,
             int64_t noise, double amount, Tensor y, int64_t stream) {
  LinearProblem p = problem(x, weight, gain, key, thresholds, grid, shadows, noise, amount);
  p.x = matrix(x, p.dtype, p.rows, p.in, "x");
  p.bias = vector(bias, p.out, false, "bias");
  p.result = matrix(y, p.dtype, p.rows, p.out, "y");
  run(launch_linear_forward, p, x, stream);
}

void backward_gain(const Tensor dy, const Tensor x, const Tensor weight, const Tensor key,
                   const std::optional<Tensor> thresholds, const std::optional<Tensor> grid, int64_t shadows, int64_t noise,
                   double amount, Tensor dgain, int64_t stream) {
  LinearProblem p = problem(x, weight, std::nullopt, key, thresholds, grid, shadows, noise, amount);
  p.x = matrix(x, p.dtype, p.rows, p.in, "x");
  p.dy = matrix(dy, p.dtype, p.rows, p.out, "dy");
  WAT_CHECK(dgain.dim() == 1 && dgain.size(0) == p.out && dgain.scalar_type() == ScalarType::Float && dgain.is_contiguous(),
            "dgain must be (out,) float32");
  p.dgain = static_cast<float*>(dgain.mutable_data_ptr());
  run(launch_linear_forward, p, x, stream);
}

void backward_data(const Tensor dy, const Tensor weight, const std::optional<Tensor> gain, const Tensor key,
                   const std::optional<Tensor> thresholds, const std::optional<Tensor> grid, int64_t shadows, int64_t noise,
                   double amount, Tensor dx, const std::optional<Tensor> parts, int64_t stream) {
  LinearProblem p = problem(dy, weight, gain, key, thresholds, grid, shadows, noise, amount);
  p.dy = matrix(dy, p.dtype, p.rows, p.out, "dy");
  p.result = matrix(dx, p.dtype, p.rows, p.in, "dx");
  if (parts.has_value()) {
    WAT_CHECK(parts->dim() == 3 && parts->size(1) == p.rows && parts->size(2) == p.in && parts->is_contiguous() &&
                  parts->scalar_type() == ScalarType::Float,
              "parts must be (splits, rows, in) float32");
    p.parts = static_cast<float*>(parts->mutable_data_ptr());
    p.splits = static_cast<int>(parts->size(0));
  }
  run(launch_linear_backward_data, p, dy, stream);
}

void backward_weight(const Tensor dy, const Tensor x, const std::optional<Tensor> gain, const Tensor key,
                     const std::optional<Tensor> thresholds, const std::optional<Tensor> grid, int64_t shadows, int64_t noise,
                     double amount, Tensor dweight, int64_t stream) {
  LinearProblem p = problem(dy, dweight, gain, key, thresholds, grid, shadows, noise, amount);
  p.dy = matrix(dy, p.dtype, p.rows, p.out, "dy");
  p.x = matrix(x, p.dtype, p.rows, p.in, "x");
  p.result = p.weight;
  run(launch_linear_backward_weight, p, dy, stream);
}

}  // namespace
}  // namespace wat

STABLE_TORCH_LIBRARY_IMPL(wat_kernels, WAT_DISPATCH_KEY, m) {
  m.impl("cuda_linear_forward", TORCH_BOX(&wat::forward));
  m.impl("cuda_linear_backward_gain", TORCH_BOX(&wat::backward_gain));
  m.impl("cuda_linear_backward_data", TORCH_BOX(&wat::backward_data));
  m.impl("cuda_linear_backward_weight", TORCH_BOX(&wat::backward_weight));
}
