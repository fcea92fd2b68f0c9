// A pool of threads that sleep when idle. One call splits `tasks` equal pieces over at most `threads` threads, the
// caller included. Which thread runs a piece never changes what the piece computes, so results do not depend on it.
#pragma once
#include <cstdint>

namespace adder {

void parallel(int64_t tasks, int threads, void (*run)(void* context, int64_t task), void* context);

template <class F>
void parallel_for(int64_t tasks, int threads, F& body) {
  parallel(tasks, threads, [](void* context, int64_t task) { (*static_cast<F*>(context))(task); }, &body);
}

// Phases of `tasks[p]` tasks, one phase after another: run(context, p, task) may read what all tasks of phases before p have
// written. The threads take tasks as they come and wait for the end of a phase without sleeping, so a phase should
// last microseconds. One thread is enough to finish: none waits for another that has not begun.
void parallel_phases(const int64_t* tasks, int64_t phases, int threads, void (*run)(void* context, int64_t phase, int64_t task),
                     void* context);

template <class F>
void parallel_phases(const int64_t* tasks, int64_t phases, int threads, F& body) {
  parallel_phases(
      tasks, phases, threads,
      [](void* context, int64_t phase, int64_t task) { (*static_cast<F*>(context))(phase, task); }, &body);
}

// Memory of one thread, kept between calls and aligned to 64 bytes. Throws std::bad_alloc.
void* scratch(int64_t bytes);

}  // namespace adder
