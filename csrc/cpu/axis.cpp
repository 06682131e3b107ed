#include "axis.h"

#include <algorithm>
#include <numeric>

namespace wat {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

}  // namespace

std::vector<AxisClass> forward_classes(const Axis& axis) {
  std::vector<AxisClass> classes;
  for (int64_t o = 0; o < axis.output; ++o) {
    const int64_t origin = o * axis.stride - axis.pad;  // input index of tap 0
    const int64_t low = std::min(axis.kernel, std::max<int64_t>(0, ceil_div(-origin, axis.dilation)));
    const int64_t high = std::max(low, std::min(axis.kernel, ceil_div(axis.input - origin, axis.dilation)));
    if (!classes.empty()) {
      AxisClass& last = classes.back();
      if (last.tap_count == high - low && (last.tap_first == low || high == low)) {
        ++last.count;
        continue;
      }
    }
    classes.push_back({o, 1, 1, low, 1, high - low, origin + low * axis.dilation, axis.dilation, axis.stride});
  }
  return classes;
}

std::vector<AxisClass> gradient_classes(const Axis& axis) {
  std::vector<AxisClass> classes;
  const int64_t tap_step = axis.stride / std::gcd(axis.stride, axis.dilation);
  for (int64_t residue = 0; residue < std::min(axis.stride, axis.input); ++residue) {
    // the first tap whose distance divides, if there is one
    int64_t tap = 0;
    while (tap < tap_step && (residue + axis.pad - tap * axis.dilation) % axis.stride != 0) ++tap;
    bool fresh = true;
    for (int64_t i = residue; i < axis.input; i += axis.stride) {
      int64_t low = tap_step == tap ? axis.kernel : tap;
      while (low < axis.kernel && i + axis.pad - low * axis.dilation > (axis.output - 1) * axis.stride) low += tap_step;
      int64_t count = 0;
      while (low + count * tap_step < axis.kernel && i + axis.pad - (low + count * tap_step) * axis.dilation >= 0) ++count;
      if (!fresh) {
        AxisClass& last = classes.back();
        if (last.tap_count == count && (last.tap_first == low || count == 0)) {
          ++last.count;
          continue;
        }
      }
      fresh = false;
      const int64_t source = count == 0 ? 0 : (i + axis.pad - low * axis.dilation) / axis.stride;
      classes.push_back({i, axis.stride, 1, low, tap_step, count, source, -(axis.dilation * tap_step) / axis.stride, 1});
    }
  }
  return classes;
}

}  // namespace wat
