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

// Memory of one thread, kept between calls and aligned to 64 bytes. Throws std::bad_alloc.
void* scratch(int64_t bytes);

}  // namespace adder
