#pragma once
#include "arguments.hpp"

namespace adder {

struct LinearScan {
  Storage storage;
  int threads;
  int64_t b, l, c;  // batch, length, channels
  bool reverse;
  Packing packing;
  Rows a, x, h;
  const void* state;  // (b, c) in arithmetic; null means zero
  void* last;         // (b, c)

  // The time of the s-th step in the order of the recurrence, and whether a packed sequence starts with it.
  int64_t time(int64_t s) const { return reverse ? l - 1 - s : s; }
  bool starts(int64_t b, int64_t s) const {
    return packing.seq_idx && s > 0 && packing.seq_idx[b * l + time(s)] != packing.seq_idx[b * l + time(s - 1)];
  }
};

struct LinearScanBackward : LinearScan {  // x and last are not read
  Rows dh, da, dx;
  const void* dlast;  // (b, c)
  void* dstate;       // (b, c)
};

}  // namespace adder

ADDER_KERNEL(linear_scan, LinearScan)
ADDER_KERNEL(linear_scan_backward, LinearScanBackward)
