// Short convolution, forward: a task is a block of steps of one batch row, all channels. Rows are read in order, a few
// of them at once, so that each weight that is loaded serves several steps.
#include "short_convolution/cpu.hpp"

#include "kernel.hpp"
#include "math.hpp"

namespace adder::ADDER_ISA {
namespace {

constexpr int64_t block = 64;
constexpr int together = 4;

// y at `count` steps that share their weights. taps: (k, count) rows of inputs, tap k - 1 the present.
template <class T, int count>
void convolve(const ShortConvolution& p, const T* const* taps, T* const* y) {
  using S = arithmetic_t<T>;
  const S *weight = static_cast<const S*>(p.weight), *bias = static_cast<const S*>(p.bias);
  for_vectors<S>(p.d, [&](int64_t c, auto n) {
    Vec<S> total[count];
    for (int r = 0; r < count; ++r) total[r] = bias ? load(bias + c, n) : Vec<S>{};
    for (int64_t j = 0; j < p.k; ++j) {
      const Vec<S> w = load(weight + j * p.d + c, n);
#pragma GCC unroll 4
      for (int r = 0; r < count; ++r) total[r] += w * load(taps[j * count + r] + c, n);
    }
    for (int r = 0; r < count; ++r) store(y[r] + c, p.silu ? total[r] * logistic<S>(total[r]) : total[r], n);
  });
}

template <class T, int count>
void steps(const ShortConvolution& p, int64_t b, int64_t t, const T* zero, const T** taps) {
  T* y[count];
  for (int r = 0; r < count; ++r) {
    y[r] = p.y.at<T>(b, t + r);
    for (int64_t j = 0; j < p.k; ++j) taps[j * count + r] = p.input(b, t + r + j + 1 - p.k, t + r, 0, zero);
  }
  convolve<T, count>(p, taps, y);
}

template <class T>
void keep_last(const ShortConvolution& p, int64_t b, const T* zero) {
  for (int64_t i = 0; i < p.k - 1; ++i) {
    const T* from = p.input(b, p.l + i + 1 - p.k, p.l - 1, 0, zero);
    T* to = static_cast<T*>(p.last) + (b * (p.k - 1) + i) * p.d;
    for (int64_t c = 0; c < p.d; ++c) to[c] = from[c];
  }
}

template <class T>
void run(const ShortConvolution& p) {
  const int64_t blocks = ceil_div(p.l, block);
  auto body = [&](int64_t task) {
    auto pieces = [&](char* base, T*& zero, const T**& taps) {
      Arena arena{base};
      zero = arena.take<T>(p.d), taps = arena.take<const T*>(p.k * together);
      return arena.used;
    };
    T* zero;
    const T** taps;
    pieces(static_cast<char*>(scratch(pieces(nullptr, zero, taps))), zero, taps);
    for (int64_t c = 0; c < p.d; ++c) zero[c] = T{};
    const int64_t b = task / blocks, end = smaller(task % blocks * block + block, p.l);
    int64_t t = task % blocks * block;
    for (; t + together <= end; t += together) steps<T, together>(p, b, t, zero, taps);
    for (; t < end; ++t) steps<T, 1>(p, b, t, zero, taps);
    if (end == p.l) keep_last<T>(p, b, zero);
  };
  parallel_for(p.b * blocks, worth(p.threads, p.b * p.l * p.d), body);
}

}  // namespace

void short_convolution(const ShortConvolution& p) {
  by_storage(p.storage, [&] { run<float>(p); }, [&] { run<double>(p); }, [&] { run<bfloat16>(p); });
}

}  // namespace adder::ADDER_ISA
