// What the forward and the backward pass share: kernels brought to vectors of channels, and where signals lie.
#pragma once
#include "long_convolution/cpu_window.hpp"

namespace adder::ADDER_ISA {

template <class T>
inline int channels_of(const LongConvolution& p, int64_t vector) {
  return static_cast<int>(smaller(lanes<arithmetic_t<T>>, p.h - vector * lanes<arithmetic_t<T>>));
}
template <class T>
inline int64_t vectors_of(const LongConvolution& p) {
  return ceil_div(p.h, lanes<arithmetic_t<T>>);
}

// The inputs of a batch row (T const), or their gradients: a state's, then the row's.
template <class T>
inline Signal<T> inputs_of(const LongConvolution& p, const Rows& rows, const void* state, int64_t b, int64_t vector) {
  using Stored = std::remove_const_t<T>;
  const int64_t channel = vector * lanes<arithmetic_t<Stored>>;
  T* early = state ? static_cast<T*>(const_cast<void*>(state)) + b * p.before * p.h + channel : nullptr;
  return {early, rows.at<T>(b, 0, channel), p.h, rows.row, p.before, channels_of<Stored>(p, vector)};
}
// The outputs (c h) of a batch row, or their gradients.
template <class T>
inline Signal<T> outputs_of(const LongConvolution& p, const Rows& rows, int64_t b, int64_t vector, int64_t c) {
  using Stored = std::remove_const_t<T>;
  const int64_t channel = c * p.h + vector * lanes<arithmetic_t<Stored>>;
  return {nullptr, rows.at<T>(b, 0, channel), 0, rows.row, 0, channels_of<Stored>(p, vector)};
}

// A transform on its own, every point times `scale`: forward to spectra, or back from them.
template <class S, bool back>
struct Alone {
  S* x;
  S scale;
  static constexpr int downs = back ? 0 : 1, ups = back ? 1 : 0;
  S* down(int) const { return x; }
  S* up(int) const { return x; }
  template <int R>
  void at(int64_t first, int64_t blocks) const {
    S* from = x + first * point<S>;
    for (int64_t block = 0; block < blocks; ++block, from += R * point<S>) {
      Point<S> a[R];
      each<R>([&](auto q) { a[q] = get(from + q * point<S>); });
      butterfly<S, R, back>(a);
      each<R>([&](auto q) { put(from + q * point<S>, Point<S>{a[q].re * scale, a[q].im * scale}); });
    }
  }
};

// K, vector by vector of channels, into p.kernels.
template <class S>
inline void prepare_kernels(const LongConvolution& p, int64_t vectors) {
  const int64_t width = p.width() * lanes<S>;
  auto body = [&](int64_t task) {
    const int64_t first = task / p.c * lanes<S>, n = smaller(lanes<S>, p.h - first);
    S* to = static_cast<S*>(p.kernels) + task * width;
    Desk<S> desk;
    auto pieces = [&](char* base) {
      Arena arena{base};
      desk.take(arena, p.transform ? 2 * p.transform->points : 0, false);
      return arena.used;
    };
    pieces(static_cast<char*>(scratch(pieces(nullptr))));
    S* side = p.transform ? desk.padded : to;
    if (n < lanes<S>)
      for (int64_t i = 0; i < p.taps * lanes<S>; ++i) side[i] = S(0);
    transpose(static_cast<const S*>(p.K) + (task % p.c * p.h + first) * p.k, p.k, n, p.taps, side, lanes<S>);
    if (!p.transform) return;
    desk.in_padded(*p.transform, 0, p.taps, to);
    descend<S>(*p.transform, Alone<S, false>{to, S(1) / S(p.transform->points)});
  };
  parallel_for(vectors * p.c, worth(p.threads, vectors * p.c * p.width() * lanes<S>), body);
}

}  // namespace adder::ADDER_ISA
