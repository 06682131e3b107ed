// shadow_linear.native and shadow_linear_bwd.native: arguments in, LinearProblem filled, kernel of the instruction set
// called. The kernels are in linear_kernels.h and linear_backward.h.
#include "linear.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../common/check.h"
#include "memory.h"

namespace wat {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr char kOp[] = "shadow_linear.native";

// A (rows, columns) tensor whose columns are adjacent: itself, or a contiguous copy.
Tensor adjacent_columns(const Tensor& t) {
  return t.size(1) <= 1 || t.stride(1) == 1 ? t : torch::stable::contiguous(t);
}

// Contiguous fp32 of a small vector (bias, gain).
std::optional<Tensor> small_fp32(const std::optional<Tensor>& t) {
  if (!t.has_value()) return std::nullopt;
  return torch::stable::contiguous(torch::stable::to(*t, ScalarType::Float));
}

void fill(LinearProblem& p, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& gain,
          const Tensor& key, const std::optional<Tensor>& thresholds, const std::optional<Tensor>& grid, int64_t shadows,
          int64_t noise, double amount) {
  WAT_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1),
            "x must be (rows, in) and weight (out, in)");
  WAT_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16,
            "x must be float32 or bfloat16");
  WAT_CHECK(weight.scalar_type() == x.scalar_type(), "x and weight must have one dtype");
  WAT_CHECK(shadows >= 1 && x.size(0) % shadows == 0, "shadows=", shadows, " does not divide the ", x.size(0),
            " rows of x");
  WAT_CHECK(key.numel() == 1 && key.scalar_type() == ScalarType::Long, "key must be one int64");
  WAT_CHECK(grid.has_value() == thresholds.has_value(), "grid and grid_thresholds come together");
  p.rows = x.size(0), p.in = x.size(1), p.out = weight.size(0);
  p.shadows = shadows, p.chunk = p.rows / shadows;
  p.bf16 = x.scalar_type() == ScalarType::BFloat16;
  p.weight = weight.const_data_ptr();
  p.weight_row = weight.stride(0);
  if (gain.has_value()) {
    p.gain = static_cast<const float*>(gain->const_data_ptr());
    p.gain_count = gain->numel();
    WAT_CHECK(p.gain_count == 1 || p.gain_count == p.out, "gain has ", p.gain_count, " elements, accepted are 1 and ",
              p.out);
  }
  p.key = static_cast<uint64_t>(*static_cast<const int64_t*>(key.const_data_ptr()));
  if (grid.has_value()) {
    WAT_CHECK(grid->dim() == 2 && grid->size(0) >= 1 && grid->size(1) == 4 && thresholds->numel() == grid->size(0) &&
                  grid->scalar_type() == ScalarType::Long && thresholds->scalar_type() == ScalarType::Long,
              "grid must be (R, 4) int64 and grid_thresholds (R,) int64");
    p.grid = static_cast<const int64_t*>(grid->const_data_ptr());
    p.thresholds = static_cast<const int64_t*>(thresholds->const_data_ptr());
    p.grid_rows = grid->size(0);
  }
  p.noise = static_cast<int>(noise);
  p.amount = amount;
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& t) {
  if (!t.has_value()) return std::nullopt;
  return torch::stable::contiguous(*t);
}

constexpr char kNoScratch[] = "no memory for at most 2 MiB of scratch a thread";

Tensor forward(const Tensor x_, const Tensor weight_, const std::optional<Tensor> bias_, const std::optional<Tensor> gain_,
               const Tensor key, const std::optional<Tensor> thresholds_, const std::optional<Tensor> grid_,
               int64_t shadows, int64_t noise, double amount) {
  const Tensor x = adjacent_columns(x_), weight = adjacent_columns(weight_);
  const auto bias = small_fp32(bias_), gain = small_fp32(gain_);
  const auto thresholds = contiguous(thresholds_), grid = contiguous(grid_);
  LinearProblem p{};
  fill(p, x, weight, gain, key, thresholds, grid, shadows, noise, amount);
  if (bias.has_value()) {
    WAT_CHECK(bias->numel() == p.out, "bias has ", bias->numel(), " elements, accepted is ", p.out);
    p.bias = static_cast<const float*>(bias->const_data_ptr());
  }
  const int64_t sizes[] = {p.rows, p.out};
  Tensor y = torch::stable::new_empty(x, {sizes, 2});
  p.x = x.const_data_ptr();
  p.x_row = x.stride(0);
  p.y = y.mutable_data_ptr();
  huge_pages(p.y, y.numel() * y.element_size());
  p.y_row = p.out;
  WAT_CHECK(WAT_PICK_BF16(linear_forward, p.bf16)(p), kNoScratch);
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor dy_, const Tensor x_, const Tensor weight_,
                                                    const std::optional<Tensor> gain_, const Tensor key,
                                                    const std::optional<Tensor> thresholds_,
                                                    const std::optional<Tensor> grid_, int64_t shadows, int64_t noise,
                                                    double amount, std::vector<bool> mask) {
  WAT_CHECK(mask.size() == 4, "mask must have four elements");
  const Tensor dy = adjacent_columns(dy_), x = adjacent_columns(x_), weight = adjacent_columns(weight_);
  const auto gain = small_fp32(gain_);
  const auto thresholds = contiguous(thresholds_), grid = contiguous(grid_);
  LinearProblem p{};
  fill(p, x, weight, gain, key, thresholds, grid, shadows, noise, amount);
  WAT_CHECK(dy.dim() == 2 && dy.size(0) == p.rows && dy.size(1) == p.out && dy.scalar_type() == x.scalar_type(),
            "dy must be (rows, out) of the dtype of x");
  const bool want_dgain = mask[3] && gain_.has_value();
  const bool nothing = p.rows == 0 || p.in == 0 || p.out == 0;

  const int64_t dx_sizes[] = {p.rows, p.in}, dw_sizes[] = {p.out, p.in}, bias_sizes[] = {p.out}, none[] = {0};
  const auto make = [&](bool wanted, const int64_t* sizes, size_t dims, bool zero, std::optional<ScalarType> dtype = {}) {
    if (!wanted) return torch::stable::new_empty(x, {none, 1});
    return zero ? torch::stable::new_zeros(x, {sizes, dims}, dtype) : torch::stable::new_empty(x, {sizes, dims}, dtype);
  };
  // columns of x that no weight reaches under a shift are never written
  Tensor dx = make(mask[0], dx_sizes, 2, nothing || grid.has_value());
  // dgain is a by-product of dweight
  Tensor dweight = make(mask[1] || want_dgain, dw_sizes, 2, nothing);
  Tensor dbias = make(mask[2], bias_sizes, 1, nothing, ScalarType::Float);
  const int64_t partial_sizes[] = {linear_column_blocks(p), p.out};
  Tensor partial = make(want_dgain, partial_sizes, 2, true, ScalarType::Float);

  if (!nothing) {
    huge_pages(dx.mutable_data_ptr(), dx.numel() * dx.element_size());
    huge_pages(dweight.mutable_data_ptr(), dweight.numel() * dweight.element_size());
    p.x = x.const_data_ptr(), p.x_row = x.stride(0);
    p.dy = dy.const_data_ptr(), p.dy_row = dy.stride(0);
    if (mask[0]) p.dx = dx.mutable_data_ptr(), p.dx_row = p.in;
    if (mask[1] || want_dgain) p.dweight = dweight.mutable_data_ptr(), p.dweight_row = p.in;
    if (mask[2]) p.dbias = static_cast<float*>(dbias.mutable_data_ptr());
    if (want_dgain) p.dgain_partial = static_cast<float*>(partial.mutable_data_ptr());
    WAT_CHECK(WAT_PICK_BF16(linear_backward, p.bf16)(p), kNoScratch);
  }

  if (mask[2] && p.bf16) dbias = torch::stable::to(dbias, ScalarType::BFloat16);
  if (!mask[1]) dweight = torch::stable::new_empty(x, {none, 1});
  Tensor dgain = torch::stable::new_empty(x, {none, 1});
  if (want_dgain) {
    dgain = torch::stable::new_empty(*gain, gain_->sizes());
    float* to = static_cast<float*>(dgain.mutable_data_ptr());
    const float* from = static_cast<const float*>(partial.const_data_ptr());
    double total = 0;
    for (int64_t o = 0; o < p.out; ++o) {
      double sum = 0;
      for (int64_t block = 0; block < linear_column_blocks(p); ++block) sum += from[block * p.out + o];
      total += sum;
      if (p.gain_count != 1) to[o] = static_cast<float>(sum);
    }
    if (p.gain_count == 1) to[0] = static_cast<float>(total);
    dgain = torch::stable::to(dgain, gain_->scalar_type());
  }
  return {dx, dweight, dbias, dgain};
}

}  // namespace
}  // namespace wat

STABLE_TORCH_LIBRARY_IMPL(wat_kernels, CPU, m) {
  m.impl("shadow_linear.native", TORCH_BOX(&wat::forward));
  m.impl("shadow_linear_bwd.native", TORCH_BOX(&wat::backward));
}
