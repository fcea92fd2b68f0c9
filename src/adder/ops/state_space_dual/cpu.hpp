#pragma once
#include "arguments.hpp"

namespace adder {

struct StateSpaceDual {
  Storage storage;
  int threads;
  int64_t b, l, h, p, g, n;  // batch, length, heads, channels of a head, groups of B and C, state size
  int64_t chunk;             // steps between two saved states, at most l
  bool softplus, skip_by_channel;
  double dt_min, dt_max;
  Packing packing;
  Rows x, dt, B, C, z;                   // (b, l, h p), (b, l, h), (b, l, g n) twice, (b, l, h p); z may be null
  const void *A, *D, *dt_bias, *state;   // (h), (h) or (h, p), (h), (b, h, p, n) in arithmetic; all but A may be null
  Rows y;
  void* last;   // (b, h, p, n)
  void* saved;  // (b, chunks, h, n, p): the state before each chunk; the forward pass may leave it out

  int64_t chunks() const { return (l + chunk - 1) / chunk; }
};

struct StateSpaceDualBackward : StateSpaceDual {
  Rows dy, dx, ddt, dB, dC, dz;
  const void* dlast;                     // null means zero
  void *dA, *dD, *ddt_bias, *dstate;     // (h), (h) or (h, p), (h), (b, h, p, n); dD, ddt_bias, dstate may be null
  void *dA_rows, *dD_rows, *dbias_rows;  // for each batch row: (b, h), (b, h, p), (b, h)
  void *dB_parts, *dC_parts;             // (b, parts, l, n): the sums over one block of heads each
};

// Heads of one task of the backward pass: each task adds a part of its own to dB and dC.
constexpr int64_t backward_heads = 4;

// How many such blocks the heads of a group make.
inline int64_t blocks_of_group(int64_t h, int64_t g) { return (h / g + backward_heads - 1) / backward_heads; }

}  // namespace adder

ADDER_KERNEL(state_space_dual, StateSpaceDual)
ADDER_KERNEL(state_space_dual_backward, StateSpaceDualBackward)
