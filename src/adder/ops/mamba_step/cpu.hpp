#pragma once
#include "arguments.hpp"
#include "weights.hpp"

namespace adder {

// One token of every stream through a stack of blocks and its head: what no kind of block adds to. Small parameters and the
// convolutions' states are in the storage of the step, states of the scans float.
struct StackStep {
  Storage storage;  // float32 or bfloat16
  int threads;
  int64_t b, d_model, d, n, k, vocabulary;  // streams; d inner channels; n states; k taps; rows of the head that are asked for
  double eps;
  int64_t depth;
  const int64_t* ids;               // (b), each below the rows of the embedding
  Matrix embedding, head;
  const void* norm;                 // (d_model), before the head
  const uintptr_t *states, *after;  // (depth, 2): those of the convolution and of the scan of every block, before and after
  void* logits;                     // (b, vocabulary)
};

// Mamba. States: (b, k - 1, d) and (b, d, n).
struct MambaStep : StackStep {
  struct Block {
    const void* norm;                            // (d_model)
    Matrix in_proj, x_proj, dt_proj, out_proj;
    const void *in_bias, *out_bias;              // (2 d), (d_model) or null
    const void *conv_weight, *conv_bias;         // (d, k), (d) or null
    const void *dt_bias, *A_log, *D;             // (d), (d, n), (d)
  };
  int64_t rank;
  const Block* blocks;
};

// Mamba-2. States: (b, k - 1, d + 2 g n) and (b, h, d / h, n).
struct Mamba2Step : StackStep {
  struct Block {
    const void* norm;                     // (d_model)
    Matrix in_proj, out_proj;             // (2 d + 2 g n + h, d_model), (d_model, d)
    const void *in_bias, *out_bias;       // or null
    const void *conv_weight, *conv_bias;  // (d + 2 g n, k), (d + 2 g n) or null
    const void *dt_bias, *A_log, *D;      // (h), (h), (h) or (d)
    const void* gate_norm;                // (d), or null: the gate alone
    double gate_eps, dt_min, dt_max;
    bool norm_before_gate, skip_by_channel;
  };
  int64_t h, g;  // heads, groups of heads that share B and C and are normalised together
  const Block* blocks;

  int64_t p() const { return d / h; }
  int64_t mixed() const { return d + 2 * g * n; }  // channels of the convolution: x, B, C
};

}  // namespace adder

ADDER_KERNEL(mamba_step, MambaStep)
ADDER_KERNEL(mamba2_step, Mamba2Step)
