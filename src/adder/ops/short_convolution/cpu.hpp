#pragma once
#include "arguments.hpp"

namespace adder {

struct ShortConvolution {
  Storage storage;
  int threads;
  int64_t b, l, d, k;  // batch, length, channels, taps
  bool silu;
  Packing packing;
  Rows x, y;
  const void *weight, *bias;  // (k, d), (d) in arithmetic: row k - 1 meets the present; bias may be null
  const void* state;          // (b, k - 1, d) in storage; null means zero
  void* last;                 // (b, k - 1, d)

  // Whether steps s and t of a row lie in one packed sequence; the state lies in the first.
  bool same(int64_t b, int64_t s, int64_t t) const {
    if (!packing.seq_idx) return true;
    const int32_t* row = packing.seq_idx + b * l;
    return row[s < 0 ? 0 : s] == row[t < 0 ? 0 : t];
  }
  // The input at step s, which may be negative, as the tap of step t reads it; `zero` is a row of zeros.
  template <class T>
  const T* input(int64_t b, int64_t s, int64_t t, int64_t channel, const T* zero) const {
    if ((s < 0 && !state) || !same(b, s, t)) return zero;
    if (s >= 0) return x.at<const T>(b, s, channel);
    return static_cast<const T*>(state) + (b * (k - 1) + s + k - 1) * d + channel;
  }
};

struct ShortConvolutionBackward : ShortConvolution {  // y and last are not read
  Rows dy, dx;
  const void* dlast;             // (b, k - 1, d) in storage
  void* dstate;                  // (b, k - 1, d) in storage
  void *dweight_parts, *dweight;  // (b, blocks, k + 1, d), (k + 1, d) in arithmetic: the last row is the bias's
};

// Steps of one part of the weight's gradient.
constexpr int64_t convolution_block = 256;

}  // namespace adder

ADDER_KERNEL(short_convolution, ShortConvolution)
ADDER_KERNEL(short_convolution_backward, ShortConvolutionBackward)
