// Vectors of ADDER_VECTOR_BYTES bytes over GCC's and Clang's vector extensions: + - * / work lane by lane.
// S is the type of arithmetic (float or double), T the type in memory (float, double or bfloat16).
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace adder::ADDER_ISA {

struct bfloat16 {
  uint16_t bits;
};

template <class T>
struct arithmetic {
  using type = T;
};
template <>
struct arithmetic<bfloat16> {
  using type = float;
};
template <class T>
using arithmetic_t = typename arithmetic<T>::type;

template <class S>
struct vector_of;
template <>
struct vector_of<float> {
  typedef float type __attribute__((vector_size(ADDER_VECTOR_BYTES)));
  typedef int32_t integers __attribute__((vector_size(ADDER_VECTOR_BYTES)));
};
template <>
struct vector_of<double> {
  typedef double type __attribute__((vector_size(ADDER_VECTOR_BYTES)));
  typedef int64_t integers __attribute__((vector_size(ADDER_VECTOR_BYTES)));
};
template <class S>
using Vec = typename vector_of<S>::type;
template <class S>
using Ints = typename vector_of<S>::integers;

template <class S>
constexpr int lanes = ADDER_VECTOR_BYTES / sizeof(S);

template <class S>
inline Vec<S> splat(S value) {
  return value - Vec<S>{};  // a broadcast; Vec{} is all zeros
}

template <class S, class V>
inline Vec<S> as_vector(V bits) {
  Vec<S> out;
  static_assert(sizeof(bits) == sizeof(out));
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}
template <class S>
inline Ints<S> as_integers(Vec<S> value) {
  Ints<S> out;
  std::memcpy(&out, &value, sizeof(out));
  return out;
}

typedef uint16_t Halves __attribute__((vector_size(ADDER_VECTOR_BYTES / 2)));

inline Vec<float> widen(Halves halves) {
  return as_vector<float>(__builtin_convertvector(halves, Ints<float>) << 16);
}
// Round to nearest even; a NaN stays a NaN.
inline Halves narrow(Vec<float> value) {
  typedef uint32_t Words __attribute__((vector_size(ADDER_VECTOR_BYTES)));
  Words bits;
  std::memcpy(&bits, &value, sizeof(bits));
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = (value == value) ? rounded : ((bits >> 16) | 0x40);
  return __builtin_convertvector(rounded, Halves);
}

template <class T>
inline Vec<arithmetic_t<T>> load(const T* from) {
  if constexpr (sizeof(T) == 2) {
    Halves halves;
    std::memcpy(&halves, from, sizeof(halves));
    return widen(halves);
  } else {
    Vec<T> out;
    std::memcpy(&out, from, sizeof(out));
    return out;
  }
}
// The first `count` lanes from memory, zeros in the others.
template <class T>
inline Vec<arithmetic_t<T>> load(const T* from, int count) {
  constexpr int width = lanes<arithmetic_t<T>>;
  if (count == width) return load(from);
  T buffer[width] = {};
  std::memcpy(buffer, from, count * sizeof(T));
  return load(buffer);
}

template <class T>
inline void store(T* to, Vec<arithmetic_t<T>> value) {
  if constexpr (sizeof(T) == 2) {
    Halves halves = narrow(value);
    std::memcpy(to, &halves, sizeof(halves));
  } else {
    std::memcpy(to, &value, sizeof(value));
  }
}
template <class T>
inline void store(T* to, Vec<arithmetic_t<T>> value, int count) {
  constexpr int width = lanes<arithmetic_t<T>>;
  if (count == width) return store(to, value);
  T buffer[width];
  store(buffer, value);
  std::memcpy(to, buffer, count * sizeof(T));
}

// One number of storage type T, as the type of arithmetic.
template <class T>
inline arithmetic_t<T> scalar(T value) {
  if constexpr (sizeof(T) == 2) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof(out));
    return out;
  } else {
    return value;
  }
}

// The sum over the lanes, always in the same order.
template <class S>
inline S sum(Vec<S> value) {
  S part[lanes<S>];
  std::memcpy(part, &value, sizeof(value));
  for (int half = lanes<S> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  return part[0];
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define ADDER_SHUFFLES 1
#endif
#endif

#if ADDER_SHUFFLES
// Of a and b, which hold sums in groups of `width` lanes, adds neighbouring groups and interleaves the two.
template <class S, int width, int... i>
inline Vec<S> add_neighbours(Vec<S> a, Vec<S> b, std::integer_sequence<int, i...>) {
  constexpr int n = lanes<S>;
  return __builtin_shufflevector(a, b, (i % (2 * width) < width ? i : n + i - width)...) +
         __builtin_shufflevector(a, b, (i % (2 * width) < width ? i + width : n + i)...);
}
template <class S, int width>
inline Vec<S> sum_each(const Vec<S>* from) {  // of 2 * width vectors
  using Lanes = std::make_integer_sequence<int, lanes<S>>;
  if constexpr (width == 1) {
    return add_neighbours<S, 1>(from[0], from[1], Lanes{});
  } else {
    return add_neighbours<S, width>(sum_each<S, width / 2>(from), sum_each<S, width / 2>(from + width), Lanes{});
  }
}
#endif

// to[i] = the sum over the lanes of from[i]: as many vectors at once as a vector has lanes, by shuffles.
template <class S>
inline void sums(const Vec<S>* from, int64_t count, S* to) {
  int64_t i = 0;
#if ADDER_SHUFFLES
  for (; i + lanes<S> <= count; i += lanes<S>) {
    const Vec<S> each = sum_each<S, lanes<S> / 2>(from + i);
    std::memcpy(to + i, &each, sizeof(each));
  }
#endif
  for (; i < count; ++i) to[i] = sum<S>(from[i]);
}

template <class S>
inline Vec<S> minimum(Vec<S> a, Vec<S> b) {  // NaN in a stays
  return b < a ? b : a;
}
template <class S>
inline Vec<S> maximum(Vec<S> a, Vec<S> b) {
  return b > a ? b : a;
}

// The nearest whole number, for |x| below 2^22 (float) or 2^51 (double).
template <class S>
inline Vec<S> nearest(Vec<S> x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) return (Vec<S>)_mm512_roundscale_ps((__m512)x, 8);
  if constexpr (sizeof(S) == 8) return (Vec<S>)_mm512_roundscale_pd((__m512d)x, 8);
#endif
  const S magic = sizeof(S) == 4 ? S(12582912.0) : S(6755399441055744.0);
  return (x + magic) - magic;
}

// p 2^k for whole |k| <= 252 (float) or 2044 (double): overflow gives infinity, underflow goes through subnormals to zero.
template <class S>
inline Vec<S> scale_by_power(Vec<S> p, Vec<S> k) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) return (Vec<S>)_mm512_scalef_ps((__m512)p, (__m512)k);
  if constexpr (sizeof(S) == 8) return (Vec<S>)_mm512_scalef_pd((__m512d)p, (__m512d)k);
#endif
  constexpr int mantissa = sizeof(S) == 4 ? 23 : 52, bias = sizeof(S) == 4 ? 127 : 1023;
  Ints<S> whole = __builtin_convertvector(k, Ints<S>);
  Ints<S> first = whole >> 1, second = whole - first;  // two factors that are both normal numbers
  return p * as_vector<S>((first + bias) << mantissa) * as_vector<S>((second + bias) << mantissa);
}

}  // namespace adder::ADDER_ISA
