// Pages of large results.
#pragma once

#include <cstddef>

namespace wat {

// Asks for huge pages under a fresh allocation before it is first written: a large result comes from the system in
// 4 KiB pages each time, and their faults can take longer than the convolution. Only a hint; small ranges are left.
void huge_pages(void* begin, size_t bytes);

}  // namespace wat
