// exp, softplus and the logistic function on vectors. Errors are in units of the type's epsilon; the tests hold them.
#pragma once
#include "simd.hpp"

namespace adder::ADDER_ISA {

// 2^f - 1 over f, for |f| <= 1/2. Float: minimax in relative error of 2^f (2.0e-9). Double: Taylor's series to f^13.
template <class S>
inline Vec<S> exp2_quotient(Vec<S> f) {
  if constexpr (sizeof(S) == 4) {
    Vec<S> q = splat<S>(1.53533619e-4f);
    q = q * f + 1.33988744e-3f;
    q = q * f + 9.61843736e-3f;
    q = q * f + 5.55033247e-2f;
    q = q * f + 2.40226479e-1f;
    return q * f + 6.93147203e-1f;
  } else {
    constexpr double c[] = {6.931471805599453e-1, 2.402265069591007e-1, 5.550410866482158e-2, 9.618129107628477e-3,
                            1.3333558146428443e-3, 1.5403530393381609e-4, 1.525273380405984e-5, 1.3215486790144307e-6,
                            1.0178086009239699e-7, 7.0549116208011234e-9, 4.4455382718708114e-10,
                            2.5678435993488203e-11, 1.3691488853904128e-12};
    Vec<S> q = splat<S>(c[12]);
    for (int i = 11; i >= 0; --i) q = q * f + c[i];
    return q;
  }
}

// 2^x. Exact at 0, so that a decay of one stays one. x is clamped, or left to instructions that take any number,
// because a compiler may fuse the product behind x into x - k: at 1e30 that difference would not be small.
template <class S>
inline Vec<S> exp2(Vec<S> x) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  Vec<S> k = nearest<S>(x), f;
  if constexpr (sizeof(S) == 4)
    f = (Vec<S>)_mm512_reduce_ps((__m512)x, 8);
  else
    f = (Vec<S>)_mm512_reduce_pd((__m512d)x, 8);
#else
  const S limit = sizeof(S) == 4 ? S(252) : S(2044);
  x = minimum<S>(maximum<S>(x, splat<S>(-limit)), splat<S>(limit));
  Vec<S> k = nearest<S>(x), f = x - k;
#endif
  return scale_by_power<S>(f * exp2_quotient<S>(f) + S(1), k);
}

// e^x: the argument is reduced in two steps, so the error does not grow with |x|.
template <class S>
inline Vec<S> exp(Vec<S> x) {
  const S limit = sizeof(S) == 4 ? S(170) : S(1400);  // |k| stays in the range of scale_by_power
  x = minimum<S>(maximum<S>(x, splat<S>(-limit)), splat<S>(limit));
  const S log2e = S(1.4426950408889634);
  const S high = sizeof(S) == 4 ? S(0.693145751953125) : S(6.93147180369123816490e-01);
  const S low = sizeof(S) == 4 ? S(1.428606765330187e-06) : S(1.90821492927058770002e-10);
  Vec<S> k = nearest<S>(x * log2e);
  Vec<S> f = ((x - k * high) - k * low) * log2e;
  return scale_by_power<S>(f * exp2_quotient<S>(f) + S(1), k);
}

// 1 / (1 + e^-x)
template <class S>
inline Vec<S> logistic(Vec<S> x) {
  return S(1) / (S(1) + exp<S>(-x));
}

// log(1 + e) for e in [0, 1], as 2 artanh(s) with s = e / (2 + e) <= 1/3.
template <class S>
inline Vec<S> log1p_unit(Vec<S> e) {
  Vec<S> s = e / (e + S(2));
  Vec<S> square = s * s;
  constexpr int terms = sizeof(S) == 4 ? 8 : 17;
  Vec<S> series = splat<S>(S(1) / (2 * terms - 1));
  for (int i = terms - 1; i >= 1; --i) series = series * square + S(1) / (2 * i - 1);
  return S(2) * s * series;
}

// log(1 + e^x)
template <class S>
inline Vec<S> softplus(Vec<S> x) {
  Vec<S> zero = {};
  Vec<S> magnitude = x < zero ? -x : x;
  return maximum<S>(x, zero) + log1p_unit<S>(exp<S>(-magnitude));
}

}  // namespace adder::ADDER_ISA
