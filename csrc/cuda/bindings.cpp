// Registration of what is part of no op. Each op registers its launches at the end of its own file (linear.cpp) with its
// own STABLE_TORCH_LIBRARY_* blocks. Files named .cpp see torch and are compiled by the host's compiler; files named .cu
// have the kernels, are compiled by nvcc, and never see torch.
#include <torch/csrc/stable/library.h>

#include <string>

#include "device.h"

namespace {

// "" or why the kernels do not run on this device: no driver, an older driver, another architecture.
std::string cuda_refusal(int64_t device) { return wat::device_refusal(static_cast<int>(device)); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(wat_kernels, m) { m.def("cuda_refusal(int device) -> str"); }

STABLE_TORCH_LIBRARY_IMPL(wat_kernels, CompositeExplicitAutograd, m) { m.impl("cuda_refusal", TORCH_BOX(&cuda_refusal)); }
