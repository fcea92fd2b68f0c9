#pragma once
#include "arguments.hpp"
#include "weights.hpp"

namespace adder {

struct QuantizedLinear {
  Storage storage;  // of x and y: float32 or bfloat16
  int threads;
  int64_t count, x_row;  // vectors, and the distance from one to the next in x
  Matrix weight;
  const float* bias;  // (rows) or null
  const void* x;      // (count, columns)
  void* y;            // (count, rows), contiguous
};

}  // namespace adder

ADDER_KERNEL(quantized_linear, QuantizedLinear)
