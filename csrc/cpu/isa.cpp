#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace wat {
namespace {

bool runs(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512bf16) return runs(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
  if (isa == Isa::avx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }
#endif
  return isa == Isa::portable;
}

constexpr Isa kBestFirst[] = {Isa::avx512bf16, Isa::avx512, Isa::avx2, Isa::portable};

bool find(const char* name, Isa* found) {
  for (Isa isa : kBestFirst) {
    if (std::strcmp(name, isa_name(isa)) == 0 && runs(isa)) {
      *found = isa;
      return true;
    }
  }
  return false;
}

Isa choose() {
  Isa found;
  const char* wanted = std::getenv("WAT_CPU_ISA");
  if (wanted != nullptr && find(wanted, &found)) return found;
  for (Isa isa : kBestFirst) {
    if (runs(isa)) return isa;
  }
  return Isa::portable;
}

Isa& current() {
  static Isa isa = choose();
  return isa;
}

}  // namespace

Isa isa() { return current(); }

const char* isa_name(Isa isa) {
  constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512bf16"};
  return kNames[static_cast<int>(isa)];
}

bool set_isa(const char* name) { return find(name, &current()); }

}  // namespace wat
