// A weight matrix as a kernel sees it: W (rows, columns) for y = W x.
#pragma once
#include <cstdint>

namespace adder {

// float32, bfloat16: row after row. int8, int4: tiles of 16 rows by groups of 32 columns, with a scale for each row and
// group, as quantized_linear/README.md lays them out; what lies beyond rows and columns is zero.
enum class Weights : int { float32 = 0, bfloat16 = 1, int8 = 2, int4 = 3 };

struct Matrix {
  Weights kind;
  int64_t rows, columns;
  const void *data, *scales;
};

constexpr int64_t tile_rows = 16, group_columns = 32;

// Whether this CPU adds products of bytes (AVX-512 VNNI) or of bfloat16 (AVX-512 BF16) in one instruction, and may.
bool has_vnni();
bool has_bf16_dot();

}  // namespace adder
