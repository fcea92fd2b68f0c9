// Products of small dense matrices that lie in a thread's cache: to = left right, rows side by side, in S throughout.
#pragma once
#include "kernel.hpp"

namespace adder::ADDER_ISA {

// An element (i, k) of the left matrix is data[i * row + k * column], so a transpose is a swap of the two strides.
template <class S>
struct Left {
  const S* data;
  int64_t row, column;
};

// Rows of a tile, which is two vectors wide, that the registers of a CPU hold.
constexpr int tile_height = ADDER_VECTOR_BYTES == 64 ? 8 : 4;

// sum += left right, of R rows and V vectors, the last with n columns; kept in registers while k runs.
template <class S, int R, int V, class N>
inline void add_product(Vec<S> (&sum)[R][V], const Left<S>& left, int64_t inner, const S* right, int64_t right_row, N n) {
  for (int64_t k = 0; k < inner; ++k) {
    Vec<S> row[V];
    for (int v = 0; v + 1 < V; ++v) row[v] = load(right + k * right_row + v * lanes<S>);
    row[V - 1] = load(right + k * right_row + (V - 1) * lanes<S>, n);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const S factor = left.data[r * left.row + k * left.column];
      for (int v = 0; v < V; ++v) sum[r][v] += factor * row[v];
    }
  }
}

template <class S, int R, int V, class N>
inline void multiply_tile(const Left<S>& left, int64_t inner, const S* right, int64_t right_row, S* to, int64_t to_row,
                          bool add, N n) {
  Vec<S> sum[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v)
      sum[r][v] = !add ? Vec<S>{} : v + 1 < V ? load(to + r * to_row + v * lanes<S>)
                                              : load(to + r * to_row + v * lanes<S>, n);
  add_product<S>(sum, left, inner, right, right_row, n);
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v + 1 < V; ++v) store(to + r * to_row + v * lanes<S>, sum[r][v]);
    store(to + r * to_row + (V - 1) * lanes<S>, sum[r][V - 1], n);
  }
}

// A strip of V vectors of columns, over all rows.
template <class S, int V, class N>
inline void multiply_strip(Left<S> left, int64_t rows, int64_t inner, const S* right, int64_t right_row, S* to,
                           int64_t to_row, bool add, N n) {
  constexpr int R = tile_height;
  for (; rows >= R; rows -= R, left.data += R * left.row, to += R * to_row)
    multiply_tile<S, R, V>(left, inner, right, right_row, to, to_row, add, n);
  for (; rows > 0; --rows, left.data += left.row, to += to_row)
    multiply_tile<S, 1, V>(left, inner, right, right_row, to, to_row, add, n);
}

// to (rows, columns) = left (rows, inner) right (inner, columns), or += with `add`. Columns of `right` and `to` lie side
// by side. Each sum runs over k in order, so the result does not depend on how rows and columns are cut.
template <class S>
inline void multiply(Left<S> left, int64_t rows, int64_t inner, const S* right, int64_t right_row, int64_t columns, S* to,
                     int64_t to_row, bool add = false) {
  constexpr std::integral_constant<int, lanes<S>> whole{};
  int64_t c = 0;
  if (rows == 1)  // many columns at once, since each sum waits for the one before it
    for (; c + 8 * lanes<S> <= columns; c += 8 * lanes<S>)
      multiply_tile<S, 1, 8>(left, inner, right + c, right_row, to + c, to_row, add, whole);
  for (; c + 2 * lanes<S> <= columns; c += 2 * lanes<S>)
    multiply_strip<S, 2>(left, rows, inner, right + c, right_row, to + c, to_row, add, whole);
  for (; c < columns; c += lanes<S>) {
    const int64_t left_over = columns - c;
    if (left_over >= lanes<S>)
      multiply_strip<S, 1>(left, rows, inner, right + c, right_row, to + c, to_row, add, whole);
    else
      multiply_strip<S, 1>(left, rows, inner, right + c, right_row, to + c, to_row, add, static_cast<int>(left_over));
  }
}

#if ADDER_SHUFFLES
// A square of vectors, transposed in place: neighbours first, then pairs of neighbours, and so on.
template <class S, int width, int... i>
inline void swap_lanes(Vec<S>& a, Vec<S>& b, std::integer_sequence<int, i...>) {
  constexpr int n = lanes<S>;
  const Vec<S> low = __builtin_shufflevector(a, b, (i & width ? n + i - width : i)...);
  b = __builtin_shufflevector(a, b, (i & width ? n + i : i + width)...);
  a = low;
}
template <class S, int width = 1>
inline void transpose_square(Vec<S>* rows) {
#pragma GCC unroll 16
  for (int r = 0; r < lanes<S>; ++r)
    if (!(r & width)) swap_lanes<S, width>(rows[r], rows[r + width], std::make_integer_sequence<int, lanes<S>>{});
  if constexpr (2 * width < lanes<S>) transpose_square<S, 2 * width>(rows);
}
#endif

// to (columns, rows) = from (rows, columns) transposed.
template <class S, class To = S>
inline void transpose(const S* from, int64_t from_row, int64_t rows, int64_t columns, To* to, int64_t to_row) {
  int64_t whole = 0;  // rows of full squares
#if ADDER_SHUFFLES
  if constexpr (std::is_same_v<S, To>) {
    constexpr int L = lanes<S>;
    whole = rows / L * L;
    for (int64_t r0 = 0; r0 < whole; r0 += L)
      for_vectors<S>(columns, [&](int64_t c, auto n) {
        Vec<S> square[L];
        for (int r = 0; r < L; ++r) square[r] = load(from + (r0 + r) * from_row + c, n);
        transpose_square<S>(square);
        for (int j = 0; j < n; ++j) store(to + (c + j) * to_row + r0, square[j]);
      });
  }
#endif
  for (int64_t r0 = whole; r0 < rows; r0 += 16)
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t r = r0; r < smaller(rows, r0 + 16); ++r) to[c * to_row + r] = static_cast<To>(from[r * from_row + c]);
}

}  // namespace adder::ADDER_ISA
