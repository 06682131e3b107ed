// Registration of what is part of no op. Each op registers itself at the end of its own file (conv.cpp, linear.cpp)
// with its own STABLE_TORCH_LIBRARY_IMPL(wat_kernels, CPU, m) block; the schemas come from Python. setup.py compiles
// every csrc/cpu/*.cpp, so a new op needs no line here.
#include <torch/csrc/stable/library.h>

#include <string>

#include "../common/check.h"
#include "isa.h"

namespace {

constexpr char kOp[] = "native_isa";

// "" asks for the instruction set in use; a name switches to it, for tests.
std::string native_isa(std::string name) {
  WAT_CHECK(name.empty() || wat::set_isa(name.c_str()), "isa=", name,
            " is not one of avx512bf16, avx512, avx2, portable or this processor does not have it");
  return wat::isa_name(wat::isa());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(wat_kernels, m) { m.def("native_isa(str name) -> str"); }

STABLE_TORCH_LIBRARY_IMPL(wat_kernels, CompositeExplicitAutograd, m) { m.impl("native_isa", TORCH_BOX(&native_isa)); }
