#pragma once
#include "arguments.hpp"

namespace adder {

struct SelectiveScan {
  Storage storage;
  int threads;
  int64_t b, l, d, g, n;  // batch, length, channels, groups of B and C, state size
  int64_t chunk;          // steps between two saved states
  bool softplus;
  Packing packing;
  Rows u, delta, B, C, z;                  // B, C: (b, l, g n); z may be null
  const void *A, *D, *delta_bias, *state;  // (d, n), (d), (d), (b, d, n) in arithmetic; all but A may be null
  Rows y;
  void* last;   // (b, d, n)
  void* saved;  // (b, chunks, n, d): h before each chunk; the forward pass may leave it out

  int64_t chunks() const { return (l + chunk - 1) / chunk; }
};

struct SelectiveScanBackward : SelectiveScan {
  Rows dy, du, ddelta, dB, dC, dz;
  const void* dlast;                        // null means zero
  void *dA, *dD, *ddelta_bias, *dstate;     // (d, n), (d), (d), (b, d, n)
  void *dA_rows, *dD_rows, *dbias_rows;     // the same for each batch row: (b, d, n), (b, d), (b, d)
  void *dB_parts, *dC_parts;                // (b, parts, l, n): the sums over one block of channels each
};

// Channels of one task, in vectors: few, so that one sequence feeds many threads; more in the backward pass, where
// each block adds a part of its own to dB and dC.
constexpr int forward_vectors = 4, backward_vectors = 8;

}  // namespace adder

ADDER_KERNEL(selective_scan, SelectiveScan)
ADDER_KERNEL(selective_scan_backward, SelectiveScanBackward)
