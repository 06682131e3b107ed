// Large fresh outputs on huge pages. No torch header here: the ISA translation units include this.
#pragma once

#include <cstddef>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace wat {

// Asks the kernel to back a large allocation that nobody has touched yet with huge pages. A gradient of 64 MiB is 16,384
// page faults otherwise, which cost more than computing it (24 ms against 4 for filling it, on the machine of the
// benchmarks). Only a hint: where it is refused nothing changes.
static inline void prefer_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t page = size_t{2} << 20;
  if (bytes < 2 * page) return;
  const size_t begin = (reinterpret_cast<size_t>(data) + page - 1) / page * page;
  const size_t end = (reinterpret_cast<size_t>(data) + bytes) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace wat
