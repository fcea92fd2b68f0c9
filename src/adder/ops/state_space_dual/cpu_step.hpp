// One step of one head, where there are too few to multiply as matrices: the state stays (p, n) in memory.
#pragma once
#include "kernel.hpp"

namespace adder::ADDER_ISA {

// after = decay before + values B^T and y = after C, for p rows of n numbers. before may be null, which means zero, or be
// `after`. y has room for whole vectors.
template <class S>
inline void step_head(const S* before, S decay, const S* values, const S* B, const S* C, int64_t p, int64_t n, S* after, S* y) {
  for (int64_t c = 0; c < p; c += lanes<S>) {
    Vec<S> parts[lanes<S>] = {};
    for (int64_t i = 0; i < smaller(lanes<S>, p - c); ++i) {
      const int64_t at = (c + i) * n;
      const S value = values[c + i];
      for_vectors<S>(n, [&](int64_t s, auto count) {
        Vec<S> h = value * load(B + s, count);
        if (before) h += decay * load(before + at + s, count);
        store(after + at + s, h, count);
        parts[i] += h * load(C + s, count);
      });
    }
    sums<S>(parts, lanes<S>, y + c);
  }
}

}  // namespace adder::ADDER_ISA
