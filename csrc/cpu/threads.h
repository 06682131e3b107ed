// Work on torch's own thread pool, and scratch memory. No torch header here: the ISA translation units include this.
//
// Results must not depend on the number of threads, so a kernel cuts its work into tasks by the problem alone; which
// worker runs a task is left to chance (a shared counter), which evens out cores that other processes slow down.
#pragma once

#include <cstddef>
#include <cstdint>

namespace wat {

// Threads that a parallel loop may use now (torch.get_num_threads()).
int num_workers();

using TaskFunction = void (*)(void* context, int worker, int64_t task);

// function(context, worker, task) for each task in [0, tasks), worker < workers. Inline where workers or tasks is 1.
// Tasks must not throw.
void run_tasks(int64_t tasks, int workers, TaskFunction function, void* context);

// F: callable (int worker, int64_t task).
template <class F>
inline void for_each_task(int64_t tasks, int workers, F& f) {
  run_tasks(tasks, workers, [](void* context, int worker, int64_t task) { (*static_cast<F*>(context))(worker, task); },
            &f);
}

// Scratch of the calling thread, 64-byte aligned, kept between calls and only ever grown: fresh pages cost more than
// small convolutions. Valid until the next call on this thread. Ask before starting tasks, for all workers at once.
// Returns nullptr when memory runs out; the caller reports it.
void* scratch(size_t bytes);

constexpr size_t kScratchPerWorker = size_t{2} << 20;  // the promise of the design document: at most 2 MiB a thread

}  // namespace wat
