// Fourier transforms of vectors of channels: a point is a vector of real parts and a vector of imaginary parts, and a
// butterfly is arithmetic on whole vectors with scalar factors. Forward transforms leave the points in the order of
// their digits reversed and inverse ones begin there, so nothing is ever reordered. Both go down into a block of points
// before the next block is begun, and a leaf multiplies between the two: a block stays in the first cache meanwhile.
#pragma once
#include "kernel.hpp"
#include "long_convolution/cpu.hpp"

namespace adder::ADDER_ISA {

template <class S>
struct Point {
  Vec<S> re, im;
};
template <class S>
inline Point<S> operator+(Point<S> a, Point<S> b) {
  return {a.re + b.re, a.im + b.im};
}
template <class S>
inline Point<S> operator-(Point<S> a, Point<S> b) {
  return {a.re - b.re, a.im - b.im};
}
template <class S>
inline Point<S> times(Point<S> a, Point<S> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <class S>
inline Point<S> times_conjugate(Point<S> a, Point<S> b) {  // a conj(b)
  return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im};
}
// a w, or a conj(w) on the way back.
template <class S, bool back>
inline Point<S> turn(Point<S> a, const S* w) {
  if constexpr (back) return {a.re * w[0] + a.im * w[1], a.im * w[0] - a.re * w[1]};
  return {a.re * w[0] - a.im * w[1], a.re * w[1] + a.im * w[0]};
}
// -i a, or i a on the way back.
template <class S, bool back>
inline Point<S> quarter(Point<S> a) {
  return back ? Point<S>{-a.im, a.re} : Point<S>{a.im, -a.re};
}

template <class S>
constexpr int64_t point = 2 * lanes<S>;
template <class S>
inline Point<S> get(const S* from) {
  return {load(from), load(from + lanes<S>)};
}
template <class S>
inline void put(S* to, Point<S> value) {
  store(to, value.re), store(to + lanes<S>, value.im);
}

// body(0), .. body(n - 1) with constants, so that arrays of points stay in registers.
template <class F, int... i>
inline __attribute__((always_inline)) void each(std::integer_sequence<int, i...>, F&& body) {
  (body(std::integral_constant<int, i>{}), ...);
}
template <int n, class F>
inline __attribute__((always_inline)) void each(F&& body) {
  each(std::make_integer_sequence<int, n>{}, body);
}

template <int R>
constexpr double cosines[1] = {};
template <int R>
constexpr double sines[1] = {};
template <>
inline constexpr double cosines<3>[] = {1, -0.5};
template <>
inline constexpr double sines<3>[] = {0, 0.86602540378443864676};
template <>
inline constexpr double cosines<5>[] = {1, 0.30901699437494742410, -0.80901699437494742410};
template <>
inline constexpr double sines<5>[] = {0, 0.95105651629515357212, 0.58778525229247312917};
template <>
inline constexpr double cosines<7>[] = {1, 0.62348980185873353053, -0.22252093395631440429, -0.90096886790241912624};
template <>
inline constexpr double sines<7>[] = {0, 0.78183148246802980871, 0.97492791218182360702, 0.43388373911755812048};

// a[q] = sum_j a[j] e^(-2 pi i j q / R), or e^(+...) on the way back.
template <class S, int R, bool back>
inline __attribute__((always_inline)) void butterfly(Point<S>* a) {
  if constexpr (R == 2) {
    const Point<S> other = a[0] - a[1];
    a[0] = a[0] + a[1], a[1] = other;
  } else if constexpr (R == 4) {
    const Point<S> even = a[0] + a[2], odd = a[1] + a[3], low = a[0] - a[2];
    const Point<S> high = quarter<S, back>(a[1] - a[3]);
    a[0] = even + odd, a[1] = low + high, a[2] = even - odd, a[3] = low - high;
  } else if constexpr (R == 8) {
    const S half = S(0.70710678118654752440);
    Point<S> sums[4] = {a[0] + a[4], a[1] + a[5], a[2] + a[6], a[3] + a[7]};
    Point<S> rest[4] = {a[0] - a[4], a[1] - a[5], quarter<S, back>(a[2] - a[6]), a[3] - a[7]};
    // The factors e^(-+ pi i / 4) of rest[1] and e^(-+ 3 pi i / 4) of rest[3].
    const Point<S> one = rest[1], three = rest[3];
    if constexpr (back) {
      rest[1] = {(one.re - one.im) * half, (one.re + one.im) * half};
      rest[3] = {(three.re + three.im) * -half, (three.re - three.im) * half};
    } else {
      rest[1] = {(one.re + one.im) * half, (one.im - one.re) * half};
      rest[3] = {(three.im - three.re) * half, (three.re + three.im) * -half};
    }
    butterfly<S, 4, back>(sums);
    // rest: a transform of four whose third input has its factor already
    const Point<S> even = rest[0] + rest[2], odd = rest[1] + rest[3], low = rest[0] - rest[2];
    const Point<S> high = quarter<S, back>(rest[1] - rest[3]);
    a[0] = sums[0], a[2] = sums[1], a[4] = sums[2], a[6] = sums[3];
    a[1] = even + odd, a[3] = low + high, a[5] = even - odd, a[7] = low - high;
  } else {  // odd: from both sides towards the middle
    constexpr int half = R / 2;
    Point<S> sum[half + 1], difference[half + 1];
    each<half>([&](auto i) {
      constexpr int p = i + 1;
      sum[p] = a[p] + a[R - p], difference[p] = a[p] - a[R - p];
    });
    const Point<S> first = a[0];
    each<half>([&](auto i) { a[0] = a[0] + sum[i + 1]; });
    each<half>([&](auto i) {
      constexpr int q = i + 1;
      Point<S> along = first, across = {};
      each<half>([&](auto j) {
        constexpr int p = j + 1, angle = p * q % R;
        constexpr S cosine = S(cosines<R>[angle <= half ? angle : R - angle]);
        constexpr S sine = S(angle <= half ? sines<R>[angle] : -sines<R>[R - angle]);
        along.re += sum[p].re * cosine, along.im += sum[p].im * cosine;
        if constexpr (p == 1)
          across.re = difference[p].re * sine, across.im = difference[p].im * sine;
        else
          across.re += difference[p].re * sine, across.im += difference[p].im * sine;
      });
      across = quarter<S, back>(across);
      a[q] = along + across, a[R - q] = along - across;
    });
  }
}

// One level of a block of m R points at x: forward, butterflies over the stride m and then turns.
template <class S, int R>
inline void level_forward(S* x, int64_t m, const S* turns) {
  for (int64_t t = 0; t < m; ++t, x += point<S>, turns += 2 * (R - 1)) {
    Point<S> a[R];
    each<R>([&](auto j) { a[j] = get(x + j * m * point<S>); });
    butterfly<S, R, false>(a);
    put(x, a[0]);
    each<R - 1>([&](auto q) { put(x + (q + 1) * m * point<S>, turn<S, false>(a[q + 1], turns + 2 * q)); });
  }
}
template <class S, int R>
inline void level_back(S* x, int64_t m, const S* turns) {
  for (int64_t t = 0; t < m; ++t, x += point<S>, turns += 2 * (R - 1)) {
    Point<S> a[R];
    a[0] = get(x);
    each<R - 1>([&](auto q) { a[q + 1] = turn<S, true>(get(x + (q + 1) * m * point<S>), turns + 2 * q); });
    butterfly<S, R, true>(a);
    each<R>([&](auto j) { put(x + j * m * point<S>, a[j]); });
  }
}

// The first level, from the rows of a signal s: the points are (s[t] + i s[t + points]) e^(pi i t / (2 points)), whose
// cyclic convolution of `points` numbers is the convolution of s, of 2 * points, that changes sign where it wraps.
// `real` says that the second half is zero. `ahead`: from a row to where the next signal has it.
template <class T, int R, bool real>
inline void first_forward(const Transform& plan, const T* const* rows, int64_t ahead, arithmetic_t<T>* x) {
  using S = arithmetic_t<T>;
  const int64_t m = plan.points / R;
  const S *turns = static_cast<const S*>(plan.turns[0]), *weights = static_cast<const S*>(plan.weights);
  for (int64_t t = 0; t < m; ++t, x += point<S>, turns += 2 * (R - 1)) {
    Point<S> a[R];
    each<R>([&](auto j) {
      const S* w = weights + 2 * (t + j * m);
      const T* row = rows[t + j * m];
      const Vec<S> re = load(row);
      __builtin_prefetch(row + ahead, 0, 2);
      if constexpr (real) {
        a[j] = {re * w[0], re * w[1]};
      } else {
        const T* second = rows[plan.points + t + j * m];
        a[j] = turn<S, false>({re, load(second)}, w);
        __builtin_prefetch(second + ahead, 0, 2);
      }
    });
    butterfly<S, R, false>(a);
    put(x, a[0]);
    each<R - 1>([&](auto q) { put(x + (q + 1) * m * point<S>, turn<S, false>(a[q + 1], turns + 2 * q)); });
  }
}
// The last level back, to rows; null where nobody reads.
template <class T, int R, bool real>
inline void last_back(const Transform& plan, const arithmetic_t<T>* x, T* const* rows) {
  using S = arithmetic_t<T>;
  const int64_t m = plan.points / R;
  const S *turns = static_cast<const S*>(plan.turns[0]), *weights = static_cast<const S*>(plan.weights);
  for (int64_t t = 0; t < m; ++t, x += point<S>, turns += 2 * (R - 1)) {
    Point<S> a[R];
    a[0] = get(x);
    each<R - 1>([&](auto q) { a[q + 1] = turn<S, true>(get(x + (q + 1) * m * point<S>), turns + 2 * q); });
    butterfly<S, R, true>(a);
    each<R>([&](auto j) {
      const S* w = weights + 2 * (t + j * m);
      if (T* row = rows[t + j * m]) store(row, a[j].re * w[0] + a[j].im * w[1]);
      if constexpr (!real)
        if (T* row = rows[plan.points + t + j * m]) store(row, a[j].im * w[0] - a[j].re * w[1]);
    });
  }
}

// Calls body with the radix as a constant.
template <class F>
inline void by_radix(int radix, F&& body) {
  switch (radix) {
    case 2: return body(std::integral_constant<int, 2>{});
    case 3: return body(std::integral_constant<int, 3>{});
    case 4: return body(std::integral_constant<int, 4>{});
    case 5: return body(std::integral_constant<int, 5>{});
    case 7: return body(std::integral_constant<int, 7>{});
    default: return body(std::integral_constant<int, 8>{});
  }
}

template <class F>
inline void by_first_radix(int radix, F&& body) {
  switch (radix) {
    case 3: return body(std::integral_constant<int, 3>{});
    case 4: return body(std::integral_constant<int, 4>{});
    default: return body(std::integral_constant<int, 5>{});
  }
}

// What lies below a level whose blocks have m points each, the first of them at point `at`. The leaf tells which
// buffers go down and which come back, and what happens between: leaf.down(i), leaf.up(i), leaf.at<R>(point, blocks).
template <class S, class Leaf>
void descend(const Transform& plan, int level, int64_t at, int64_t m, const Leaf& leaf) {
  const int blocks = plan.radix[level];
  if (level + 2 == plan.levels)
    return by_radix(plan.radix[level + 1], [&](auto R) { leaf.template at<R>(at, blocks); });
  const S* turns = static_cast<const S*>(plan.turns[level + 1]);
  for (int block = 0; block < blocks; ++block, at += m)
    by_radix(plan.radix[level + 1], [&](auto R) {
      for (int i = 0; i < leaf.downs; ++i) level_forward<S, R>(leaf.down(i) + at * point<S>, m / R, turns);
      descend<S>(plan, level + 1, at, m / R, leaf);
      for (int i = 0; i < leaf.ups; ++i) level_back<S, R>(leaf.up(i) + at * point<S>, m / R, turns);
    });
}
// All levels below the first.
template <class S, class Leaf>
inline void descend(const Transform& plan, const Leaf& leaf) {
  descend<S>(plan, 0, 0, plan.points / plan.radix[0], leaf);
}

}  // namespace adder::ADDER_ISA
