#include "threads.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdlib>
#include <memory>

namespace wat {

int num_workers() { return static_cast<int>(torch::stable::get_num_threads()); }

void run_tasks(int64_t tasks, int workers, TaskFunction function, void* context) {
  if (workers > tasks) workers = static_cast<int>(tasks);
  if (workers <= 1) {
    for (int64_t task = 0; task < tasks; ++task) function(context, 0, task);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
        function(context, static_cast<int>(worker), task);
      }
    }
  });
}

void* scratch(size_t bytes) {
  struct Free {
    void operator()(void* pointer) const { std::free(pointer); }
  };
  thread_local std::unique_ptr<void, Free> buffer;
  thread_local size_t held = 0;
  if (bytes <= held) return buffer.get();
  held = 0;
  buffer.reset();
  void* pointer = nullptr;
  if (posix_memalign(&pointer, 64, bytes) != 0) return nullptr;
  buffer.reset(pointer);
  held = bytes;
  return pointer;
}

}  // namespace wat
