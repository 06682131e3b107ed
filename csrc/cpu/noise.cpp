// noise.native and noise_multiply.native: the noise of SW for the backends that make SW. The kernel is in
// noise_kernels.h; the schemas and what they mean are in wat_kernels/noise_op.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "../common/check.h"
#include "../common/philox.h"
#include "memory.h"
#include "noise_problem.h"

namespace wat {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_draw(const char* kOp, const Tensor& key, int64_t noise) {
  WAT_CHECK(key.numel() == 1 && key.scalar_type() == ScalarType::Long, "key must be one int64");
  WAT_CHECK(noise == kNoiseMultiplicative || noise == kNoiseDropConnect, "noise=", noise,
            " is not a kind of noise; accepted are ", int{kNoiseMultiplicative}, " and ", int{kNoiseDropConnect});
}

// (shadows, elements) fp32
Tensor fill(const Tensor key, int64_t shadows, int64_t elements, int64_t noise, double amount) {
  constexpr char kOp[] = "noise.native";
  check_draw(kOp, key, noise);
  WAT_CHECK(shadows >= 0 && elements >= 0, "shadows=", shadows, " and elements=", elements, " must not be negative");
  const int64_t sizes[] = {shadows, elements};
  Tensor out = torch::stable::new_empty(key, {sizes, 2}, ScalarType::Float);
  if (out.numel() == 0) return out;
  float* to = static_cast<float*>(out.mutable_data_ptr());
  huge_pages(to, out.numel() * sizeof(float));
  NoiseProblem p{};
  p.key = static_cast<uint64_t>(*static_cast<const int64_t*>(key.const_data_ptr()));
  p.noise = static_cast<int>(noise), p.amount = amount;
  for (int d = 0; d < 4; ++d) p.size[d] = 1;
  p.size[3] = elements, p.element[3] = 1, p.out_step[3] = 1;
  for (; p.shadow < shadows; ++p.shadow) {
    p.out = to + p.shadow * elements;
    WAT_PICK(noise_apply)(p);
  }
  return out;
}

// Dimensions that are one run in all three ways are one; those of one index are left out. At the end of p's four.
void fill_dimensions(NoiseProblem& p, const Tensor& source, const Tensor& out, const std::vector<int64_t>& steps) {
  int kept = 4;
  for (int d = 0; d < 4; ++d) p.size[d] = 1;
  for (int64_t d = source.dim() - 1; d >= 0; --d) {
    const int64_t size = source.size(d), element = steps[d], from = source.stride(d), to = out.stride(d);
    if (size == 1) continue;
    if (kept < 4 && element == p.size[kept] * p.element[kept] && from == p.size[kept] * p.source_step[kept] &&
        to == p.size[kept] * p.out_step[kept]) {
      p.size[kept] *= size;
      continue;
    }
    --kept;
    p.size[kept] = size, p.element[kept] = element, p.source_step[kept] = from, p.out_step[kept] = to;
  }
  if (kept == 4) p.element[3] = p.source_step[3] = p.out_step[3] = 1;  // one element
}

void multiply(const Tensor source, Tensor out, int64_t first, const std::vector<int64_t> steps, const Tensor key,
              int64_t shadow, int64_t noise, double amount) {
  constexpr char kOp[] = "noise_multiply.native";
  check_draw(kOp, key, noise);
  const int64_t dims = source.dim();
  WAT_CHECK(dims >= 1 && dims <= 4, "source has ", dims, " dimensions; accepted are 1 to 4");
  WAT_CHECK(static_cast<int64_t>(steps.size()) == dims, "steps has ", steps.size(), " numbers for ", dims,
            " dimensions of source");
  WAT_CHECK(out.dim() == dims, "out must have the shape of source");
  for (int64_t d = 0; d < dims; ++d) {
    WAT_CHECK(out.size(d) == source.size(d), "out must have the shape of source");
    WAT_CHECK(steps[d] >= 0, "steps has ", steps[d], "; accepted is 0 or more");
  }
  WAT_CHECK(first >= 0, "first=", first, "; accepted is 0 or more");
  NoiseProblem p{};
  const ScalarType type = source.scalar_type();
  WAT_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Double,
            "source must be float32, bfloat16 or float64");
  WAT_CHECK(out.scalar_type() == type, "out must have the dtype of source");
  if (source.numel() == 0) return;
  p.type = type == ScalarType::Float ? NoiseType::fp32 : type == ScalarType::Double ? NoiseType::fp64 : NoiseType::bf16;
  p.key = static_cast<uint64_t>(*static_cast<const int64_t*>(key.const_data_ptr()));
  p.shadow = shadow, p.noise = static_cast<int>(noise), p.amount = amount, p.first = first;
  p.source = source.const_data_ptr();
  p.out = out.mutable_data_ptr();
  fill_dimensions(p, source, out, steps);
  if (p.out != p.source) huge_pages(p.out, out.numel() * out.element_size());
  WAT_PICK(noise_apply)(p);
}

}  // namespace
}  // namespace wat

STABLE_TORCH_LIBRARY_IMPL(wat_kernels, CPU, m) {
  m.impl("noise.native", TORCH_BOX(&wat::fill));
  m.impl("noise_multiply.native", TORCH_BOX(&wat::multiply));
}
