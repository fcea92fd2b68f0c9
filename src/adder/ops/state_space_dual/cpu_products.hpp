// The matrix products of state space duality, over at most `block_steps` steps of one head. Everything lies in a thread's
// scratch memory, in arithmetic type S.
//
// A matrix of p columns lies in panels of two vectors of columns (the last may have one), each panel row after row: the
// panel from column c on starts at c * rows. So a tile reads memory in order, and 128 rows do not fall into the same few
// sets of the cache. A matrix over pairs of steps, weights[s][t], and one that is transposed, projection[i][t], have rows
// of `block_steps` numbers.
#pragma once
#include "matrix.hpp"

namespace adder::ADDER_ISA {

// Steps multiplied at once: few, since each costs as many products again; enough to load a state seldom.
constexpr int64_t block_steps = 32;

// Calls body(c, V) for each panel of a matrix of so many columns: its first column, and its vectors as a constant.
template <class S, class F>
inline void for_panels(int64_t columns, F&& body) {
  int64_t c = 0;
  for (; c + lanes<S> < columns; c += 2 * lanes<S>) body(c, std::integral_constant<int, 2>{});
  if (c < columns) body(c, std::integral_constant<int, 1>{});
}

// Calls body(i, R) for tiles of rows; R is a constant.
template <class F>
inline void for_tiles(int64_t rows, F&& body) {
  int64_t i = 0;
  for (; i + tile_height <= rows; i += tile_height) body(i, std::integral_constant<int, tile_height>{});
  for (; i < rows; ++i) body(i, std::integral_constant<int, 1>{});
}

template <class S>
constexpr std::integral_constant<int, lanes<S>> whole_vector{};

// Zeros, in registers: an initialiser would be written to memory.
template <class S, int R, int V>
inline void clear(Vec<S> (&sum)[R][V]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sum[r][v] = Vec<S>{};
}

// to (n, p) = factor from + left^T right; from may be null, which means zero, or be `to`. The products are summed first: a
// long memory is rounded once in a segment, not at every step.
// left is (steps, left_row) row by row, right (block_steps, p) in panels.
template <class S>
inline void advance(const S* from, S factor, const S* left, int64_t left_row, const S* right, int64_t steps, int64_t n,
                    int64_t p, S* to) {
  for_panels<S>(p, [&](int64_t c, auto V) {
    constexpr int vectors = V, row = vectors * lanes<S>;
    for_tiles(n, [&](int64_t i, auto R) {
      const int64_t at = c * n + i * row;
      Vec<S> sum[R][vectors];
      clear<S>(sum);
      add_product<S>(sum, {left + i, 1, left_row}, steps, right + c * block_steps, row, whole_vector<S>);
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) {
          const int64_t k = at + r * row + v * lanes<S>;
          if (from) sum[r][v] += factor * load(from + k);
          store(to + k, sum[r][v]);
        }
    });
  });
}

// sum[t] += weights[s][t] values[s] over s <= t, for rows t0 .. t0 + R - 1. What lies above the diagonal is not read: zero
// times NaN is NaN.
template <class S, int R, int V>
inline void add_earlier(Vec<S> (&sum)[R][V], const S* weights, int64_t t0, const S* values, int64_t row) {
  add_product<S>(sum, {weights + t0, 1, block_steps}, t0, values, row, whole_vector<S>);
#pragma GCC unroll 8
  for (int s = 0; s < R; ++s)
#pragma GCC unroll 8
    for (int r = s; r < R; ++r)
      for (int v = 0; v < V; ++v)
        sum[r][v] += weights[(t0 + s) * block_steps + t0 + r] * load(values + (t0 + s) * row + v * lanes<S>);
}

// sum[s] += weights[s][t] values[t] over t >= s, for rows s0 .. s0 + R - 1.
template <class S, int R, int V>
inline void add_later(Vec<S> (&sum)[R][V], const S* weights, int64_t s0, const S* values, int64_t row, int64_t steps) {
#pragma GCC unroll 8
  for (int t = 0; t < R; ++t)
#pragma GCC unroll 8
    for (int r = 0; r <= t; ++r)
      for (int v = 0; v < V; ++v)
        sum[r][v] += weights[(s0 + r) * block_steps + s0 + t] * load(values + (s0 + t) * row + v * lanes<S>);
  const int64_t next = s0 + R;
  add_product<S>(sum, {weights + s0 * block_steps + next, block_steps, 1}, steps - next, values + next * row, row,
                 whole_vector<S>);
}

enum class Direction { earlier, later };

// finish(t, c, out) for every step and vector of columns, where out = scale[t] projection[t] . state, plus the products
// with the steps before or behind. state (n, p) and values (block_steps, p) lie in panels; state may be null.
template <Direction direction, class S, class F>
inline void project(const S* state, const S* projection, const S* scale, const S* weights, const S* values,
                    int64_t steps, int64_t n, int64_t p, F&& finish) {
  for_panels<S>(p, [&](int64_t c, auto V) {
    constexpr int vectors = V, row = vectors * lanes<S>;
    for_tiles(steps, [&](int64_t t, auto R) {
      Vec<S> sum[R][vectors];
      clear<S>(sum);
      if (state) {
        add_product<S>(sum, {projection + t, 1, block_steps}, n, state + c * n, row, whole_vector<S>);
        for (int r = 0; r < R; ++r)
          for (int v = 0; v < V; ++v) sum[r][v] *= scale[t + r];
      }
      if constexpr (direction == Direction::earlier)
        add_earlier<S>(sum, weights, t, values + c * block_steps, row);
      else
        add_later<S>(sum, weights, t, values + c * block_steps, row, steps);
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) finish(t + r, c + v * lanes<S>, sum[r][v]);
    });
  });
}

// part = scale[t] (state values^T)[i][t]; sums[i][t] += part; dots[t] = the sum of projection[i][t] part over i.
// values (p, block_steps); the others (n, block_steps).
template <class S>
inline void add_from_state(const S* state, const S* values, const S* scale, const S* projection, int64_t steps, int64_t n,
                           int64_t p, S* sums, S* dots) {
  constexpr int V = 2;
  static_assert(block_steps % (V * lanes<S>) == 0);
  for (int64_t t = 0; t < steps; t += V * lanes<S>) {
    Vec<S> dot[V] = {};
    for_tiles(n, [&](int64_t i, auto R) {
      Vec<S> sum[R][V];
      clear<S>(sum);
      for_panels<S>(p, [&](int64_t c, auto W) {
        constexpr int row = W * lanes<S>;
        add_product<S>(sum, {state + c * n + i * row, row, 1}, smaller(row, p - c), values + c * block_steps + t,
                       block_steps, whole_vector<S>);
      });
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) {
          const int64_t at = (i + r) * block_steps + t + v * lanes<S>;
          const Vec<S> part = sum[r][v] * load(scale + t + v * lanes<S>);
          store(sums + at, load(sums + at) + part);
          dot[v] += part * load(projection + at);
        }
    });
    for (int v = 0; v < V; ++v) store(dots + t + v * lanes<S>, dot[v]);
  }
}

// The sum of a b over all of two (n, p) matrices in panels.
template <class S>
inline S dot(const S* a, const S* b, int64_t n, int64_t p) {
  Vec<S> total[2] = {};
  for_panels<S>(p, [&](int64_t c, auto V) {
    constexpr int vectors = V, row = vectors * lanes<S>;
    for (int64_t i = 0; i < n; ++i)
      for_vectors<S>(smaller(row, p - c), [&](int64_t v, auto count) {
        const int64_t at = c * n + i * row + v;
        total[i % 2] += load(a + at, count) * load(b + at, count);
      });
  });
  return sum<S>(total[0] + total[1]);
}

}  // namespace adder::ADDER_ISA
