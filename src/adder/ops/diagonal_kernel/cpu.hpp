#pragma once
#include "arguments.hpp"

namespace adder {

// Sums over powers of z. Numbers are doubles, or pairs of them (real, imaginary). With l = a S + s, z^l = (z^S)^a z^s:
// S is steps(), and a block of the length is powers_most values of a.
constexpr int64_t powers_most = 128;

struct DiagonalPowers {
  Storage storage;  // of K and dK: float32 or float64
  int threads;
  int64_t c, h, m, l;  // output channels, channels, modes, length
  bool pairs;
  const double* z;  // (h, m) numbers

  int64_t steps() const {
    int64_t s = 16;
    while (s < powers_most && s * s < l) s *= 2;
    return s;
  }
  int64_t blocks() const { return (l + powers_most * steps() - 1) / (powers_most * steps()); }
};

struct DiagonalKernel : DiagonalPowers {
  const double* w;  // (c, h, m) numbers
  void* K;          // (c, h, l)
};

struct DiagonalMoments : DiagonalPowers {
  const void* dK;  // (c, h, l)
  double* sums;    // (2, c, h, m) numbers
  double* parts;   // (blocks, 2, c, h, m) numbers, the same of each block; with one block it is `sums`
};

}  // namespace adder

ADDER_KERNEL(diagonal_kernel, DiagonalKernel)
ADDER_KERNEL(diagonal_moments, DiagonalMoments)
