#pragma once
#include "arguments.hpp"

namespace adder {

struct GatedNorm {
  Storage storage;
  int threads;
  int64_t b, l, d, group;  // batch, length, channels, channels normalised together
  double eps;
  bool norm_before_gate;
  Rows y, z, out;      // z is null for the plain norm
  const void* weight;  // (d) in arithmetic
};

struct GatedNormBackward : GatedNorm {  // out is not read
  Rows dout, dy, dz;
  void *dweight_parts, *dweight;  // (blocks of rows, d), (d) in arithmetic
};

// Rows of one task, and of one part of the weight's gradient.
constexpr int64_t norm_block = 32;

}  // namespace adder

ADDER_KERNEL(gated_norm, GatedNorm)
ADDER_KERNEL(gated_norm_backward, GatedNormBackward)
