// shadow_conv.native and shadow_conv_bwd.native: arguments in, ConvProblem filled, kernel of the instruction set
// called. The kernels are in dense_*.h and depthwise_*.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "../common/check.h"
#include "conv_problem.h"
#include "dense.h"
#include "depthwise.h"
#include "memory.h"
#include "threads.h"

namespace wat {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr char kOp[] = "shadow_conv.native";
constexpr char kNoScratch[] = "no memory for at most 2 MiB of scratch a thread";
constexpr int64_t kTinyWork = int64_t{1} << 20;  // multiply-adds that one thread finishes before another wakes up

struct Shape4 {
  int64_t size[4], stride[4];
};

// Of images (N, C, H, W), or of sequences (N, C, L), which are images of height 1. Weights in the same way.
Shape4 shape_of(const Tensor& t) {
  Shape4 shape;
  const auto sizes = t.sizes(), strides = t.strides();
  const int missing = 4 - static_cast<int>(t.dim());
  for (int d = 0; d < 2; ++d) shape.size[d] = sizes[d], shape.stride[d] = strides[d];
  for (int d = 2 + missing; d < 4; ++d) shape.size[d] = sizes[d - missing], shape.stride[d] = strides[d - missing];
  if (missing) shape.size[2] = 1, shape.stride[2] = shape.size[3] * shape.stride[3];
  return shape;
}

Shape4 dense_shape(int64_t n, int64_t c, int64_t h, int64_t w, bool channels_last) {
  const auto least = [](int64_t a) { return a > 1 ? a : 1; };  // as torch strides an empty tensor, in this format only
  if (channels_last) return {{n, c, h, w}, {h * w * c, 1, w * c, c}};
  return {{n, c, h, w}, {least(c) * least(h) * least(w), least(h) * least(w), least(w), 1}};
}

// Whether torch calls these strides channels_last: by their order, sizes of 1 included. As in ops/conv/geometry.py.
bool is_channels_last(const Shape4& shape) {
  const int64_t *size = shape.size, *stride = shape.stride;
  int64_t least = 1;
  for (const int d : {1, 3, 2, 0}) {
    if (size[d] == 0 || stride[d] < least) return false;
    if (d == 0 && least == stride[1]) return false;  // (N, 1, 1, 1) has no format
    least = stride[d] * size[d];
  }
  return true;
}

// With as many dimensions as `like`.
Tensor allocate(const Shape4& of_images, const Tensor& like) {
  AtenTensorHandle handle;
  int32_t dtype;
  Shape4 shape = of_images;
  if (like.dim() == 3) shape.size[2] = shape.size[3], shape.stride[2] = shape.stride[3];
  WAT_CALL_TORCH("read a dtype", aoti_torch_get_dtype(like.get(), &dtype));
  WAT_CALL_TORCH("allocate a result", aoti_torch_empty_strided(like.dim(), shape.size, shape.stride, dtype,
                                                               aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
  huge_pages(tensor.data_ptr(), tensor.numel() * (dtype == aoti_torch_dtype_float32() ? 4 : 2));
  return tensor;
}

Tensor allocate_vector(int64_t size, int32_t dtype) {
  AtenTensorHandle handle;
  const int64_t stride = 1;
  WAT_CALL_TORCH("allocate a result",
                 aoti_torch_empty_strided(1, &size, &stride, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// What kernels read or write: channels adjacent. Another layout passes through a channels_last copy.
bool channels_adjacent(const Shape4& shape) { return shape.size[1] <= 1 || shape.stride[1] == 1; }

Tensor with_adjacent_channels(const Tensor& t) {
  const Shape4 shape = shape_of(t);
  if (channels_adjacent(shape)) return t;
  Tensor copy = allocate(dense_shape(shape.size[0], shape.size[1], shape.size[2], shape.size[3], true), t);
  torch::stable::copy_(copy, t);
  return copy;
}

// The result in the format it is promised in: itself, or what a kernel wrote to a channels_last copy of it.
struct Output {
  Tensor result, written;
  Shape4 shape;  // of `written`
  bool same;

  Output(int64_t n, int64_t c, int64_t h, int64_t w, bool channels_last, const Tensor& like)
      : result(nullptr), written(nullptr) {
    shape = dense_shape(n, c, h, w, channels_last);
    result = allocate(shape, like);
    same = channels_adjacent(shape);
    if (same) {
      written = result;
    } else {
      shape = dense_shape(n, c, h, w, true);
      written = allocate(shape, like);
    }
  }

  Tensor finish() {
    if (!same) torch::stable::copy_(result, written);
    return result;
  }
};

// fp32 copies of a small vector (bias, gain) where it is not fp32 and contiguous already.
struct SmallVector {
  std::optional<Tensor> held;
  const float* data = nullptr;
  int64_t count = 0;

  explicit SmallVector(const std::optional<Tensor>& t) {
    if (!t.has_value()) return;
    count = t->numel();
    held = *t;
    if (held->scalar_type() != ScalarType::Float) held = torch::stable::to(*held, ScalarType::Float);
    if (!held->is_contiguous()) held = torch::stable::contiguous(*held);
    data = static_cast<const float*>(held->const_data_ptr());
  }
};

// Dense in (i, tap) for each o, as dense_pack.h reads it; the strides of sizes of 1 made to fit.
bool set_weight_strides(const Shape4& w, int64_t K, int64_t* w_o, int64_t* w_i, int64_t* w_t) {
  *w_o = w.stride[0];
  const bool taps_row_major = (w.size[3] == 1 || w.size[2] == 1 || w.stride[2] == w.size[3] * w.stride[3]);
  if (!taps_row_major) return false;
  *w_t = K == 1 ? 1 : w.size[3] > 1 ? w.stride[3] : w.stride[2];
  *w_i = w.size[1] == 1 ? K : w.stride[1];
  if (*w_t == 1 && (*w_i == K || w.size[1] == 1)) return true;
  if (w.size[1] == 1) return false;
  return *w_i == 1 && (K == 1 || *w_t >= w.size[1]);
}

struct Arguments {
  Tensor x, weight;
  SmallVector gain;
  Tensor thresholds, taps, taps_t;
  ConvProblem p{};
  bool channels_last;  // y and the gradients of x and weight
  Axis rows, columns;
  int workers;

  Arguments(const Tensor& x_in, const Tensor& weight_in, const std::optional<Tensor>& gain_in, const Tensor& key,
            const Tensor& thresholds_in, const Tensor& taps_in, const Tensor& taps_t_in,
            std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups,
            bool transposed, int64_t shadows, int64_t noise, double amount)
      : x(x_in),
        weight(weight_in),
        gain(gain_in),
        thresholds(adjacent(thresholds_in)),
        taps(adjacent(taps_in)),
        taps_t(adjacent(taps_t_in)) {
    WAT_CHECK((x.dim() == 3 || x.dim() == 4) && weight.dim() == x.dim(),
              "x and weight must both have three dimensions, or four");
    if (x.dim() == 3) {
      stride.insert(stride.begin(), 1), dilation.insert(dilation.begin(), 1);
      padding.insert(padding.begin(), 2, 0);
    }
    const Shape4 xs = shape_of(x), ws = shape_of(weight);
    const ScalarType dtype = x.scalar_type();
    WAT_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
              "x must be float32 or bfloat16");
    WAT_CHECK(weight.scalar_type() == dtype, "x and weight must have one dtype");
    WAT_CHECK(groups >= 1 && ws.size[0] % groups == 0 && xs.size[1] == (transposed ? ws.size[0] : ws.size[1] * groups),
              "groups=", groups,
              " does not fit x of ", xs.size[1], " channels and weight of (", ws.size[0], ", ", ws.size[1], ")");
    WAT_CHECK(xs.size[1] >= 1, "x has no channels");
    WAT_CHECK(shadows >= 1 && xs.size[0] % shadows == 0, "shadows=", shadows, " does not divide the batch of ",
              xs.size[0]);
    WAT_CHECK(stride.size() == 2 && padding.size() == 4 && dilation.size() == 2,
              "stride and dilation must have as many elements as there are sizes, padding twice as many");
    WAT_CHECK(key.numel() == 1 && key.scalar_type() == ScalarType::Long, "key must be one int64");
    channels_last = is_channels_last(ws) || (is_channels_last(xs) && (x.dim() == 4 || x.is_contiguous()));
    p.bf16 = dtype == ScalarType::BFloat16;
    p.N = xs.size[0], p.C = xs.size[1], p.H = xs.size[2], p.W = xs.size[3];
    p.O = transposed ? ws.size[1] * groups : ws.size[0], p.I = ws.size[1], p.kh = ws.size[2], p.kw = ws.size[3];
    p.K = p.kh * p.kw;
    p.groups = groups, p.og = ws.size[0] / groups;
    p.transposed = transposed;
    p.stride_h = stride[0], p.stride_w = stride[1];
    p.pad_top = padding[0], p.pad_left = padding[2];
    p.dilation_h = dilation[0], p.dilation_w = dilation[1];
    p.OH = output_size(p.H, padding[0] + padding[1], p.kh, p.stride_h, p.dilation_h);
    p.OW = output_size(p.W, padding[2] + padding[3], p.kw, p.stride_w, p.dilation_w);
    WAT_CHECK(p.K >= 1 && p.K <= 4096, "a kernel of ", p.K, " taps; accepted are 1 to 4096");
    WAT_CHECK(p.OH >= 0 && p.OW >= 0, "x is smaller than the kernel");
    p.shadows = shadows, p.chunk = p.N / shadows;
    rows = {p.H, p.OH, p.kh, p.stride_h, p.pad_top, p.dilation_h};
    columns = {p.W, p.OW, p.kw, p.stride_w, p.pad_left, p.dilation_w};
    if (transposed) std::swap(rows.input, rows.output), std::swap(columns.input, columns.output);

    if (!set_weight_strides(ws, p.K, &p.w_o, &p.w_i, &p.w_t)) {
      weight = torch::stable::contiguous(weight);
      set_weight_strides(shape_of(weight), p.K, &p.w_o, &p.w_i, &p.w_t);
    }
    p.weight = weight.const_data_ptr();
    p.gain = gain.data, p.gain_count = gain.count;
    WAT_CHECK(gain.count <= 1 || gain.count == p.O, "gain has ", gain.count, " elements; accepted are 1 and ", p.O);

    p.key = static_cast<uint64_t>(*static_cast<const int64_t*>(key.const_data_ptr()));
    WAT_CHECK(thresholds.scalar_type() == ScalarType::Long && taps.scalar_type() == ScalarType::Int &&
                  taps_t.scalar_type() == ScalarType::Int && taps.dim() == 2 && taps_t.dim() == 2,
              "thresholds must be int64, taps and taps_t int32 with two dimensions");
    p.rows = thresholds.numel();
    p.ell_length = taps.size(1), p.ell_t_length = taps_t.size(1);
    WAT_CHECK(p.rows >= 1 && taps.size(0) == p.rows && taps_t.size(0) == p.rows &&
                  1 + p.K + 2 * p.K * ell_width(p.ell_length, p.K) == p.ell_length &&
                  1 + p.K + 2 * p.K * ell_width(p.ell_t_length, p.K) == p.ell_t_length,
              "taps are for another kernel size than the weight's ", p.kh, "x", p.kw);
    p.thresholds = static_cast<const int64_t*>(thresholds.const_data_ptr());
    p.taps = static_cast<const int32_t*>(taps.const_data_ptr());
    p.taps_t = static_cast<const int32_t*>(taps_t.const_data_ptr());
    WAT_CHECK(noise >= 0 && noise <= 2, "noise=", noise, "; accepted are 0, 1 and 2");
    p.noise = static_cast<int>(noise);
    p.amount = amount;
    const int64_t pixels = transposed ? p.H * p.W : p.OH * p.OW;
    workers = p.N * pixels * ws.size[0] * p.I * p.K < kTinyWork ? 1 : num_workers();
  }

  int64_t output_size(int64_t size, int64_t pad, int64_t kernel, int64_t stride, int64_t dilation) const {
    const int64_t reach = dilation * (kernel - 1) + 1;
    return p.transposed ? (size - 1) * stride - pad + reach : (size + pad - reach) / stride + 1;
  }

  // Of the destination of each pass.
  std::vector<AxisClass> forward_of(const Axis& axis) const {
    return p.transposed ? gradient_classes(axis) : forward_classes(axis);
  }
  std::vector<AxisClass> gradient_of(const Axis& axis) const {
    return p.transposed ? forward_classes(axis) : gradient_classes(axis);
  }

  static Tensor adjacent(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

  void set_x(const Tensor& t) {
    x = t;
    const Shape4 s = shape_of(t);
    p.x = t.const_data_ptr();
    p.x_n = s.stride[0], p.x_h = s.stride[2], p.x_w = s.stride[3];
  }

  void set_y(const Shape4& s) { p.y_n = s.stride[0], p.y_h = s.stride[2], p.y_w = s.stride[3]; }

  bool depthwise() const { return p.I == 1 && p.og == 1; }
  bool empty() const { return p.N == 0 || p.OH == 0 || p.OW == 0 || p.O == 0; }
};

struct Plan {
  std::vector<AxisClass> rows, columns;
  DensePlan plan;
  Plan(std::vector<AxisClass> r, std::vector<AxisClass> c, int workers) : rows(std::move(r)), columns(std::move(c)) {
    plan = {rows.data(), columns.data(), static_cast<int>(rows.size()), static_cast<int>(columns.size()), workers};
  }
};

Tensor forward(const Tensor x_in, const Tensor weight_in, const std::optional<Tensor> bias_in,
               const std::optional<Tensor> gain_in, const Tensor key, const Tensor thresholds, const Tensor taps,
               const Tensor taps_t, const std::vector<int64_t> stride, const std::vector<int64_t> padding,
               const std::vector<int64_t> dilation, int64_t groups, bool transposed, int64_t shadows, int64_t noise,
               double amount) {
  Arguments a(x_in, weight_in, gain_in, key, thresholds, taps, taps_t, stride, padding, dilation, groups, transposed,
              shadows, noise, amount);
  ConvProblem& p = a.p;
  const SmallVector bias(bias_in);
  WAT_CHECK(bias.data == nullptr || bias.count == p.O, "bias has ", bias.count, " elements; accepted is ", p.O);
  p.bias = bias.data;
  Output y(p.N, p.O, p.OH, p.OW, a.channels_last, x_in);
  if (a.empty()) return y.result;
  a.set_x(with_adjacent_channels(x_in));
  a.set_y(y.shape);
  p.y = y.written.mutable_data_ptr();
  const Plan plan(a.forward_of(a.rows), a.forward_of(a.columns), a.workers);
  const auto run = a.depthwise() ? WAT_PICK_BF16(depthwise_forward, p.bf16) : WAT_PICK_BF16(dense_forward, p.bf16);
  WAT_CHECK(run(p, plan.plan), kNoScratch);
  return y.finish();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor dy_in, const Tensor x_in, const Tensor weight_in, const std::optional<Tensor> gain_in, const Tensor key,
    const Tensor thresholds, const Tensor taps, const Tensor taps_t, const std::vector<int64_t> stride,
    const std::vector<int64_t> padding, const std::vector<int64_t> dilation, int64_t groups, bool transposed,
    int64_t shadows, int64_t noise, double amount, const std::vector<bool> mask) {
  Arguments a(x_in, weight_in, gain_in, key, thresholds, taps, taps_t, stride, padding, dilation, groups, transposed,
              shadows, noise, amount);
  ConvProblem& p = a.p;
  const int32_t float32 = aoti_torch_dtype_float32();
  WAT_CHECK(mask.size() == 4, "mask must have four elements");
  WAT_CHECK(dy_in.dim() == x_in.dim() && dy_in.scalar_type() == x_in.scalar_type(), "dy must have the dtype of y");
  const Shape4 dys = shape_of(dy_in);
  WAT_CHECK(dys.size[0] == p.N && dys.size[1] == p.O && dys.size[2] == p.OH && dys.size[3] == p.OW,
            "dy must have the shape of y");
  const bool want_dgain = mask[3] && gain_in.has_value();
  const bool want_weight = mask[1] || mask[2] || want_dgain;
  int32_t dtype;
  WAT_CALL_TORCH("read a dtype", aoti_torch_get_dtype(x_in.get(), &dtype));
  const auto none = [dtype] { return allocate_vector(0, dtype); };  // results must not alias each other
  std::optional<Output> dx;
  Tensor dweight(nullptr), dbias(nullptr), dgain(nullptr);
  if (mask[0]) dx.emplace(p.N, p.C, p.H, p.W, a.channels_last, x_in);
  Shape4 dw_shape{};
  if (want_weight) {
    dw_shape = dense_shape(p.og * p.groups, p.I, p.kh, p.kw, a.channels_last);
    dweight = allocate(dw_shape, weight_in);
    set_weight_strides(dw_shape, p.K, &p.dw_o, &p.dw_i, &p.dw_t);
  }
  if (mask[2]) dbias = allocate_vector(p.O, float32);
  if (want_dgain) dgain = allocate_vector(p.gain_count, float32);

  if (a.empty()) {
    if (dx) torch::stable::zero_(dx->result);
    if (want_weight) torch::stable::zero_(dweight);
    if (mask[2]) torch::stable::zero_(dbias);
    if (want_dgain) torch::stable::zero_(dgain);
  } else {
    const Tensor dy = with_adjacent_channels(dy_in);
    a.set_y(shape_of(dy));
    p.dy = dy.const_data_ptr();
    if (dx) {
      p.dx = dx->written.mutable_data_ptr();
      p.dx_n = dx->shape.stride[0], p.dx_h = dx->shape.stride[2], p.dx_w = dx->shape.stride[3];
    }
    if (want_weight) {
      a.set_x(with_adjacent_channels(x_in));
      p.dweight = dweight.mutable_data_ptr();
      if (mask[2]) p.dbias = static_cast<float*>(dbias.mutable_data_ptr());
      if (want_dgain) p.dgain = static_cast<float*>(dgain.mutable_data_ptr());
    }
    if (dx || a.depthwise()) {
      const Plan plan(a.gradient_of(a.rows), a.gradient_of(a.columns), a.workers);
      const auto run = a.depthwise() ? WAT_PICK_BF16(depthwise_backward, p.bf16) : WAT_PICK_BF16(dense_data_gradient, p.bf16);
      WAT_CHECK(run(p, plan.plan), kNoScratch);
    }
    if (want_weight && !a.depthwise()) {
      WAT_CHECK(WAT_PICK_BF16(dense_weight_gradient, p.bf16)(p, a.workers), kNoScratch);
    }
  }
  if (mask[2] && p.bf16) dbias = torch::stable::to(dbias, ScalarType::BFloat16);
  if (want_dgain) {
    dgain = torch::stable::view(dgain, gain_in->sizes());
    if (gain_in->scalar_type() != ScalarType::Float) dgain = torch::stable::to(dgain, gain_in->scalar_type());
  }
  return {dx ? dx->finish() : none(), mask[1] ? dweight : none(), mask[2] ? dbias : none(), want_dgain ? dgain : none()};
}

}  // namespace
}  // namespace wat

STABLE_TORCH_LIBRARY_IMPL(wat_kernels, CPU, m) {
  m.impl("shadow_conv.native", TORCH_BOX(&wat::forward));
  m.impl("shadow_conv_bwd.native", TORCH_BOX(&wat::backward));
}
