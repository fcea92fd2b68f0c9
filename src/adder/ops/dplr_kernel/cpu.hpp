#pragma once
#include "arguments.hpp"

namespace adder {

struct DplrKernel {
  Storage storage;  // of K: float32 or float64
  int threads;
  int64_t h, n, c, l;     // systems, state size, outputs of a system, length
  int64_t steps;          // S, a power of two
  const double* Abar;     // (h, n, n)
  const double* Bbar;     // (h, n)
  const double* C;        // (c, h, n)
  void* K;                // (c, h, l)

  int64_t blocks() const { return (l + steps - 1) / steps; }
  int levels() const { return __builtin_ctzll(static_cast<unsigned long long>(steps)); }
};

struct DplrKernelBackward : DplrKernel {  // K is not read
  const void* dK;                         // (c, h, l)
  double *dAbar, *dBbar, *dC;             // as Abar, Bbar, C
};

}  // namespace adder

ADDER_KERNEL(dplr_kernel, DplrKernel)
ADDER_KERNEL(dplr_kernel_backward, DplrKernelBackward)
