// How rows of a signal come into a transform, a vector of channels at a time, and go out again.
#pragma once
#include "long_convolution/cpu_fourier.hpp"
#include "matrix.hpp"

namespace adder::ADDER_ISA {

// One batch row and one vector of channels, from step -before on; n of the lanes are channels.
template <class T>
struct Signal {
  T *early, *rows;         // steps -before and 0
  int64_t early_row, row;  // strides
  int64_t before;
  int n;

  T* at(int64_t s) const { return s < 0 ? early + (s + before) * early_row : rows + s * row; }
};

// What a thread needs at hand to move rows in and out.
template <class T>
struct Desk {
  using S = arithmetic_t<T>;
  void* rows;  // (steps) addresses
  S* padded;  // (steps, lanes), for vectors that are not whole
  S* zero;    // (lanes)

  void take(Arena& arena, int64_t steps, bool whole) {
    rows = arena.take<void*>(steps), zero = arena.take<S>(lanes<S>);
    padded = arena.take<S>(whole ? 0 : steps * lanes<S>);
    if (arena.base) store(zero, Vec<S>{});
  }
  // rows[i] for the step origin + i, if it is one of begin .. end - 1; `elsewhere` if not, up to `count`.
  template <class X>
  X** table(const Signal<X>& signal, int64_t origin, int64_t begin, int64_t end, int64_t count, X* elsewhere) {
    X** to = static_cast<X**>(rows);
    int64_t s = origin;
    for (; s < begin; ++s) *to++ = elsewhere;
    for (; s < smaller(end, 0); ++s) *to++ = signal.at(s);
    for (; s < end; ++s) *to++ = signal.rows + s * signal.row;
    for (; s < origin + count; ++s) *to++ = elsewhere;
    return static_cast<X**>(rows);
  }
  // The same steps side by side, widened: zeros elsewhere.
  void gather(const Signal<const T>& signal, int64_t origin, int64_t begin, int64_t end, int64_t count, S* to) const {
    for (int64_t s = origin; s < origin + count; ++s, to += lanes<S>)
      store(to, s < begin || s >= end ? Vec<S>{} : load(signal.at(s), signal.n));
  }
  void scatter(const S* from, const Signal<T>& signal, int64_t begin, int64_t end) const {
    for (int64_t s = begin; s < end; ++s, from += lanes<S>) store(signal.at(s), load(from), signal.n);
  }
  // The first level of the transform of steps begin .. end - 1, where step `origin` is the first of 2 points.
  void in(const Transform& plan, const Signal<const T>& signal, int64_t origin, int64_t begin, int64_t end,
          int64_t ahead, S* x) {
    if (signal.n == lanes<S>)
      return first<T>(plan, table(signal, origin, begin, end, 2 * plan.points, reinterpret_cast<const T*>(zero)),
                      end - origin, ahead, x);
    gather(signal, begin, begin, end, end - begin, padded);
    in_padded(plan, begin - origin, end - begin, x);
  }
  // The same, from `count` vectors in `padded`, after `skip` steps of zeros.
  void in_padded(const Transform& plan, int64_t skip, int64_t count, S* x) {
    const Signal<const S> side{nullptr, padded, 0, lanes<S>, 0, lanes<S>};
    const S** from = table(side, -skip, 0, count, 2 * plan.points, static_cast<const S*>(zero));
    first<S>(plan, from, skip + count, 0, x);
  }
  // The last level, to steps begin .. end - 1.
  void out(const Transform& plan, const S* x, const Signal<T>& signal, int64_t origin, int64_t begin, int64_t end) {
    if (signal.n == lanes<S>)
      return last<T>(plan, x, table(signal, origin, begin, end, 2 * plan.points, static_cast<T*>(nullptr)),
                     end - origin);
    out_padded(plan, x, begin - origin, end - begin);
    scatter(padded, signal, begin, end);
  }
  void out_padded(const Transform& plan, const S* x, int64_t skip, int64_t count) {
    const Signal<S> side{nullptr, padded, 0, lanes<S>, 0, lanes<S>};
    last<S>(plan, x, table(side, -skip, 0, count, 2 * plan.points, static_cast<S*>(nullptr)), skip + count);
  }

 private:
  template <class X>
  static void first(const Transform& plan, const X* const* from, int64_t steps, int64_t ahead, S* x) {
    by_first_radix(plan.radix[0], [&](auto R) {
      if (steps <= plan.points)
        first_forward<X, R, true>(plan, from, ahead, x);
      else
        first_forward<X, R, false>(plan, from, ahead, x);
    });
  }
  template <class X>
  static void last(const Transform& plan, const S* x, X* const* to, int64_t steps) {
    by_first_radix(plan.radix[0], [&](auto R) {
      if (steps <= plan.points)
        last_back<X, R, true>(plan, x, to);
      else
        last_back<X, R, false>(plan, x, to);
    });
  }
};

}  // namespace adder::ADDER_ISA
