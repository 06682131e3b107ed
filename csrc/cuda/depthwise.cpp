// The launches of depthwise.h as torch ops that write into tensors they are given: wat_kernels/ops/conv/cuda.py defines
// the schemas, allocates, and says on which stream. Arguments in, DepthwiseProblem filled, kernel launched.
#include "depthwise.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "../common/check.h"

#ifndef WAT_DISPATCH_KEY
#define WAT_DISPATCH_KEY CUDA  // the emulation of the kernels registers itself for the CPU
#endif

namespace wat {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr char kOp[] = "shadow_conv.cuda";

Scalar scalar_of(const Tensor& t) {
  const ScalarType type = t.scalar_type();
  WAT_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16,
            "accepted are float32, float16 and bfloat16");
  return type == ScalarType::Float ? Scalar::kFloat : type == ScalarType::Half ? Scalar::kHalf : Scalar::kBFloat16;
}

char* data_of(const Tensor& t) { return static_cast<char*>(const_cast<void*>(t.const_data_ptr())); }

// What one of the two images is for a layout that both have.
struct Image {
  DepthwiseImage image;
  bool channels_adjacent, contiguous;
};

Image image_of(const Tensor& t, const DepthwiseProblem& p, const char* name) {
  WAT_CHECK(t.dim() == 4 && t.size(0) == p.N && t.size(1) == p.C && scalar_of(t) == p.scalar, name, " must be (", p.N, ", ", p.C,
            ", height, width) of the dtype of the weight");
  WAT_CHECK(t.size(2) <= INT32_MAX && t.size(3) <= INT32_MAX, name, " has a side of more than 2**31 - 1");
  Image found{};
  DepthwiseImage& image = found.image;
  image.data = data_of(t);
  image.height = static_cast<int32_t>(t.size(2)), image.width = static_cast<int32_t>(t.size(3));
  image.stride_n = t.stride(0), image.stride_c = t.stride(1), image.stride_h = t.stride(2), image.stride_w = t.stride(3);
  const auto fits = [&](int d, int64_t stride) { return t.size(d) == 1 || t.stride(d) == stride; };
  found.channels_adjacent = fits(1, 1);
  found.contiguous = fits(3, 1) && fits(2, t.size(3)) && fits(1, t.size(2) * t.size(3));
  if (found.contiguous) image.stride_w = 1, image.stride_h = t.size(3), image.stride_c = t.size(2) * t.size(3);
  const auto whole = [&](int d) { return t.size(d) == 1 || t.stride(d) * p.element % 16 == 0; };
  image.aligned = reinterpret_cast<uintptr_t>(image.data) % 16 == 0 && p.C * p.element % 16 == 0 && whole(0) && whole(2) && whole(3);
  return found;
}

// Both images in one layout: channels_last wins where both would do (one pixel, one channel), for its wider copies.
void set_images(DepthwiseProblem& p, const Tensor& source, const Tensor& result) {
  const Image s = image_of(source, p, "x"), r = image_of(result, p, "y");
  p.channels_last = s.channels_adjacent && r.channels_adjacent && !(s.contiguous && r.contiguous && p.C == 1);
  WAT_CHECK(p.channels_last || (s.contiguous && r.contiguous), "images must both be contiguous or both channels_last");
  p.source = s.image, p.result = r.image;
  if (p.channels_last) p.source.stride_c = p.result.stride_c = 1;
}

// Element (c, tap) of a (C, 1, kh, kw) weight.
void set_weight(const Tensor& t, const DepthwiseProblem& p, int64_t kh, int64_t kw, int64_t* stride_c, int64_t* stride_t,
                const char* name) {
  WAT_CHECK(t.dim() == 4 && t.size(0) == p.C && t.size(1) == 1 && t.size(2) == kh && t.size(3) == kw && scalar_of(t) == p.scalar,
            name, " must be (", p.C, ", 1, ", kh, ", ", kw, ") of the dtype of x");
  WAT_CHECK(kh == 1 || kw == 1 || t.stride(2) == kw * t.stride(3), "the taps of ", name, " must be one stride apart");
  *stride_c = t.stride(0), *stride_t = t.stride(kw > 1 ? 3 : 2);
}

void set_vector(const std::optional<Tensor>& t, int64_t size, const char* name, const char** data, Scalar* scalar) {
  *data = nullptr, *scalar = Scalar::kFloat;
  if (!t.has_value()) return;
  WAT_CHECK(t->numel() == size || t->numel() == 1, name, " has ", t->numel(), " elements, accepted is ", size);
  WAT_CHECK(t->is_contiguous(), name, " must be contiguous");
  *data = data_of(*t), *scalar = scalar_of(*t);
}

// What all passes have.
DepthwiseProblem problem(const Tensor& weight, const std::optional<Tensor>& gain, const Tensor& key, const Tensor& thresholds,
                         const Tensor& taps, const Tensor& taps_t, int64_t batch, const std::vector<int64_t>& stride,
                         const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t shadows,
                         int64_t noise, double amount) {
  DepthwiseProblem p{};
  WAT_CHECK(weight.dim() == 4, "weight must have four dimensions");
  const int64_t kh = weight.size(2), kw = weight.size(3);
  p.N = batch, p.C = weight.size(0), p.K = static_cast<int32_t>(kh * kw), p.kernel_w = static_cast<int32_t>(kw);
  WAT_CHECK(p.K >= 1 && kh * kw <= 1024, "a kernel of ", kh * kw, " taps; accepted are 1 to 1024");
  p.scalar = scalar_of(weight), p.element = p.scalar == Scalar::kFloat ? 4 : 2;
  set_weight(weight, p, kh, kw, &p.weight_c, &p.weight_t, "weight");
  p.weight = data_of(weight);
  set_vector(gain, p.C, "gain", &p.gain, &p.gain_scalar);
  p.gain_per_channel = gain.has_value() && gain->numel() != 1;
  WAT_CHECK(stride.size() == 2 && padding.size() == 4 && dilation.size() == 2, "stride, padding, dilation");
  const auto axis = [&](int d, int64_t k) {
    DepthwiseAxis a{};
    const int64_t most = 1 << 24;
    WAT_CHECK(stride[d] <= most && dilation[d] * k <= most && padding[2 * d] <= most, "stride, padding or dilation too large");
    a.stride = static_cast<int32_t>(stride[d]), a.pad = static_cast<int32_t>(padding[2 * d]);
    a.dilation = static_cast<int32_t>(dilation[d]), a.taps = static_cast<int32_t>(k);
    return a;
  };
  p.vertical = axis(0, kh), p.horizontal = axis(1, kw);
  WAT_CHECK(key.numel() == 1 && key.scalar_type() == ScalarType::Long, "key must be one int64");
  p.key = reinterpret_cast<const int64_t*>(data_of(key));
  WAT_CHECK(thresholds.scalar_type() == ScalarType::Long && taps.scalar_type() == ScalarType::Int &&
                taps_t.scalar_type() == ScalarType::Int && thresholds.is_contiguous() && taps.is_contiguous() &&
                taps_t.is_contiguous() && taps.dim() == 2 && taps_t.dim() == 2,
            "thresholds must be int64, taps and taps_t int32 with two dimensions, all contiguous");
  p.table_rows = static_cast<int32_t>(thresholds.numel());
  p.line = taps.size(1), p.line_t = taps_t.size(1);
  p.width = static_cast<int32_t>(ell_width(p.line, p.K)), p.width_t = static_cast<int32_t>(ell_width(p.line_t, p.K));
  WAT_CHECK(p.table_rows >= 1 && taps.size(0) == p.table_rows && taps_t.size(0) == p.table_rows &&
                1 + p.K + 2 * p.K * p.width == p.line && 1 + p.K + 2 * p.K * p.width_t == p.line_t,
            "taps are for another kernel size than the weight's ", kh, "x", kw);
  p.thresholds = reinterpret_cast<const int64_t*>(data_of(thresholds));
  p.taps = reinterpret_cast<const int32_t*>(data_of(taps)), p.taps_t = reinterpret_cast<const int32_t*>(data_of(taps_t));
  WAT_CHECK(shadows >= 1 && batch % shadows == 0, "shadows=", shadows, " does not divide the batch of ", batch);
  p.chunk = batch / shadows;
  p.noise = noise_kind(noise, amount);
  return p;
}

void run(const DepthwiseProblem& p, const DepthwiseChoice& choice, bool weight, const Tensor& on, int64_t stream) {
  const char* error = launch_depthwise(p, choice, weight, on.get_device(), static_cast<uintptr_t>(stream));
  WAT_CHECK(error == nullptr, error);
}

void gather(const Tensor source, const Tensor weight, const std::optional<Tensor> bias, const std::optional<Tensor> gain,
            const Tensor key, const Tensor thresholds, const Tensor taps, const Tensor taps_t, const std::vector<int64_t> stride,
            const std::vector<int64_t> padding, const std::vector<int64_t> dilation, int64_t shadows, int64_t noise,
            double amount, Tensor result, bool backward, int64_t multiprocessors, int64_t stream) {
  DepthwiseProblem p = problem(weight, gain, key, thresholds, taps, taps_t, source.size(0), stride, padding, dilation, shadows,
                               noise, amount);
  p.backward = backward;
  set_images(p, source, result);
  set_vector(bias, p.C, "bias", &p.bias, &p.bias_scalar);
  run(p, prepare_depthwise(p, false, multiprocessors), false, source, stream);
}

void weight_gradient(const Tensor dy, const Tensor x, const Tensor weight, const std::optional<Tensor> gain, const Tensor key,
                     const Tensor thresholds, const Tensor taps, const Tensor taps_t, const std::vector<int64_t> stride,
                     const std::vector<int64_t> padding, const std::vector<int64_t> dilation, int64_t shadows, int64_t noise,
                     double amount, const std::optional<Tensor> dweight, const std::optional<Tensor> dbias,
                     const std::optional<Tensor> dgain, Tensor arrived, int64_t multiprocessors, int64_t stream) {
  DepthwiseProblem p = problem(weight, gain, key, thresholds, taps, taps_t, x.size(0), stride, padding, dilation, shadows,
                               noise, amount);
  set_images(p, x, dy);
  if (dweight.has_value()) {
    set_weight(*dweight, p, weight.size(2), weight.size(3), &p.dweight_c, &p.dweight_t, "dweight");
    p.dweight = data_of(*dweight);
  }
  if (dbias.has_value()) {
    WAT_CHECK(dbias->numel() == p.C && dbias->is_contiguous() && scalar_of(*dbias) == p.scalar, "dbias must be (C,)");
    p.dbias = data_of(*dbias);
  }
  if (dgain.has_value()) {
    WAT_CHECK(dgain->numel() == p.C && dgain->is_contiguous() && dgain->scalar_type() == ScalarType::Float,
              "dgain must be (C,) float32");
    p.dgain = reinterpret_cast<float*>(data_of(*dgain));
  }
  const DepthwiseChoice choice = prepare_depthwise(p, true, multiprocessors);
  const int64_t groups = (p.parts + p.parts_in_group - 1) / p.parts_in_group;
  // freed when this returns, and not used by anyone else before the kernel has run: allocations follow the stream
  const Tensor parts = torch::stable::new_empty(x, {p.parts, p.C, p.K + 1}, ScalarType::Float);
  WAT_CHECK(arrived.scalar_type() == ScalarType::Int && arrived.is_contiguous() &&
                arrived.numel() >= p.channel_blocks * (groups + 1),
            "arrived has ", arrived.numel(), " elements; needed are ", p.channel_blocks * (groups + 1));
  p.partial = reinterpret_cast<float*>(data_of(parts));
  p.arrived = reinterpret_cast<int32_t*>(data_of(arrived));
  run(p, choice, true, x, stream);
}

}  // namespace
}  // namespace wat

STABLE_TORCH_LIBRARY_IMPL(wat_kernels, WAT_DISPATCH_KEY, m) {
  m.impl("cuda_depthwise_gather", TORCH_BOX(&wat::gather));
  m.impl("cuda_depthwise_weight", TORCH_BOX(&wat::weight_gradient));
}
