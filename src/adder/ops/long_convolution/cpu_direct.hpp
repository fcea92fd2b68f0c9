// Correlations of vectors of channels as they are written, for few taps or few steps.
#pragma once
#include "kernel.hpp"

namespace adder::ADDER_ISA {

constexpr int64_t correlation_block = 128;  // of one running sum

// R of the sums below.
template <class S, int R>
inline void correlate_tile(const S* factors, int64_t step, int64_t count, const S* w, S* to) {
  Vec<S> total[R] = {};
  int64_t j = 0;
  for (; j + R <= count; j += R) {
    Vec<S> factor[R];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) factor[i] = load(factors + (j + i) * step * lanes<S>);
#pragma GCC unroll 16
    for (int i = 0; i < 2 * R - 1; ++i) {
      const Vec<S> value = load(w + (j + i) * lanes<S>);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        if (i >= r && i - r < R) total[r] += factor[i - r] * value;
    }
  }
  for (; j < count; ++j) {
    const Vec<S> factor = load(factors + j * step * lanes<S>);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) total[r] += factor * load(w + (j + r) * lanes<S>);
  }
  for (int r = 0; r < R; ++r) store(to + r * lanes<S>, load(to + r * lanes<S>) + total[r]);
}

// to[r] += sum_j factors[j step] w[r + j], j = 0 .. count - 1, r = 0 .. outputs - 1, by blocks of j.
template <class S>
inline void correlate(const S* factors, int64_t step, int64_t count, const S* w, int64_t outputs, S* to) {
  constexpr int R = ADDER_VECTOR_BYTES == 64 ? 8 : 4;
  for (; count > 0; count -= correlation_block, factors += correlation_block * step * lanes<S>,
                    w += correlation_block * lanes<S>) {
    const int64_t now = smaller(count, correlation_block);
    int64_t r = 0;
    for (; r + R <= outputs; r += R) correlate_tile<S, R>(factors, step, now, w + r * lanes<S>, to + r * lanes<S>);
    for (; r < outputs; ++r) correlate_tile<S, 1>(factors, step, now, w + r * lanes<S>, to + r * lanes<S>);
  }
}

}  // namespace adder::ADDER_ISA
