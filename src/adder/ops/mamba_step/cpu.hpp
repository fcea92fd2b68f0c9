#pragma once
#include "arguments.hpp"
#include "weights.hpp"

namespace adder {

// One Mamba block. Small parameters and the convolution's state are in the storage of the step, states of the scan float.
struct StepBlock {
  const void* norm;                            // (d_model)
  Matrix in_proj, x_proj, dt_proj, out_proj;
  const void *in_bias, *out_bias;              // (2 d), (d_model) or null
  const void *conv_weight, *conv_bias;         // (d, k), (d) or null
  const void *dt_bias, *A_log, *D;             // (d), (d, n), (d)
};

struct MambaStep {
  Storage storage;  // float32 or bfloat16
  int threads;
  int64_t b, d_model, d, n, k, rank, vocabulary;  // streams; d inner channels; k taps; rows of the head that are asked for
  double eps;
  const StepBlock* blocks;
  int64_t depth;
  const int64_t* ids;        // (b), each below the rows of the embedding
  Matrix embedding, head;
  const void* norm;          // (d_model), before the head
  const uintptr_t *states, *after;  // (depth, 2): conv (b, k - 1, d) and ssm (b, d, n) of every block, before and after
  void* logits;              // (b, vocabulary)
};

}  // namespace adder

ADDER_KERNEL(mamba_step, MambaStep)
