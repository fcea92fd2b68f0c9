#pragma once
#include "arguments.hpp"

namespace adder {

// A complex transform of `points` numbers by factors, the first over the longest stride. Tables are in arithmetic type.
struct Transform {
  static constexpr int most = 24;
  int64_t points;
  int levels;               // at least 2
  int radix[most];          // their product is `points`; the first is 3, 4 or 5
  const void* turns[most];  // level of m R points: (m, R - 1) complex, e^(-2 pi i q t / (m R)), q = 1 .. R - 1
  const void* weights;      // (points) complex, e^(pi i t / (2 points))
};

struct LongConvolution {
  Storage storage;
  int threads;
  int64_t b, l, h, c, k;       // batch, length, channels, outputs of each channel, taps
  int64_t taps, before;        // taps that meet an input; inputs before step 0: k - 1 with a state, or none
  int64_t block;               // steps computed at once
  const Transform* transform;  // null: by direct sums
  Rows u, y;                   // channels of y: (c h)
  const void* K;               // (c, h, k) in arithmetic, contiguous
  const void* state;           // (b, k - 1, h) in storage; null means zero
  void* kernels;               // (vectors of channels, c, width): spectra, or taps side by side

  int64_t width() const { return transform ? 2 * transform->points : taps; }  // in vectors
};

struct LongConvolutionBackward : LongConvolution {  // y is not read
  Rows dy, du;
  void *dstate, *dK;  // (b, k - 1, h) in storage; (c, h, k) in arithmetic
  int64_t groups;     // of units whose parts of dK are summed in one go
  void* parts;        // (groups, vectors of channels, c, width)

  // Inputs are cut into blocks from the state's first on, or one block holds them all.
  int64_t longest() const { return block < l ? block : l + before; }
};

}  // namespace adder

ADDER_KERNEL(long_convolution, LongConvolution)
ADDER_KERNEL(long_convolution_backward, LongConvolutionBackward)
