// Which instruction set the kernels use, chosen at run time.
//
// How a kernel is compiled three times: its templates live in one header (say dense_kernels.h) inside
// `namespace wat::WAT_ISA`, and three translation units of three lines each include, in this order,
//   1. every standard header and the data-only headers,
//   2. target_avx512.h, target_avx2.h or target_portable.h, which turn the instruction set on with a pragma, define
//      WAT_ISA and the vector type `Vec`,
//   3. the kernel header.
// An inline function compiled for AVX-512 must not be merged by the linker with its portable twin, so after step 2
// everything is in namespace wat::WAT_ISA or `static`, and standard function templates (std::min) are not used.
// The caller, compiled without special flags, takes the right one with WAT_PICK. What multiplies bf16 tensors is compiled a
// fourth time, with target_avx512bf16.h: there the caller asks WAT_PICK_BF16.
#pragma once

namespace wat {

// Each has all that the ones before it have.
enum class Isa { portable, avx2, avx512, avx512bf16 };

// The best the processor has, or WAT_CPU_ISA, or what set_isa said last.
Isa isa();
const char* isa_name(Isa isa);
// False when the name is unknown or the processor cannot run it.
bool set_isa(const char* name);

#if defined(__x86_64__)
#define WAT_PICK(function)                                           \
  (::wat::isa() >= ::wat::Isa::avx512 ? ::wat::avx512::function      \
   : ::wat::isa() == ::wat::Isa::avx2 ? ::wat::avx2::function        \
                                      : ::wat::portable::function)
// The same for the kernels that avx512bf16 has of its own, where the tensors are bf16.
#define WAT_PICK_BF16(function, bf16)                                                                 \
  ((bf16) && ::wat::isa() == ::wat::Isa::avx512bf16 ? ::wat::avx512bf16::function : WAT_PICK(function))
// Declares one kernel in the three namespaces: WAT_DECLARE(void linear_forward(const LinearProblem&))
#define WAT_DECLARE(...)                \
  namespace avx512 { __VA_ARGS__; }     \
  namespace avx2 { __VA_ARGS__; }       \
  namespace portable { __VA_ARGS__; }
#define WAT_DECLARE_BF16(...) \
  WAT_DECLARE(__VA_ARGS__)    \
  namespace avx512bf16 { __VA_ARGS__; }
#else
#define WAT_PICK(function) (::wat::portable::function)
#define WAT_PICK_BF16(function, bf16) (::wat::portable::function)
#define WAT_DECLARE_BF16(...) WAT_DECLARE(__VA_ARGS__)
#define WAT_DECLARE(...) \
  namespace portable { __VA_ARGS__; }
#endif

}  // namespace wat
