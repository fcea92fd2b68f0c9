// What the forward and the backward pass of the selective scan share: which channels a task has, and how a chunk's
// inputs reach scratch memory.
#pragma once
#include <initializer_list>

#include "cpu_states.hpp"
#include "kernel.hpp"
#include "selective_scan/cpu.hpp"

namespace adder::ADDER_ISA {

// Channels that lie in one vector.
struct Channels {
  int64_t first;
  int count;  // at most the lanes of a vector
};

// The unit of work: up to `most` vectors of channels of one group. Side by side in memory, they share every
// cache line and page of a row, and every row of B and C.
template <class S, int most>
struct Block {
  int64_t b, group, part;  // batch row; group of channels; index among the blocks of a batch row
  int count;               // vectors
  Channels at[most];
};

template <class S, int most>
struct Blocks {
  const SelectiveScan& p;
  int64_t per_group, vectors, blocks;  // channels, vectors and blocks of one group

  explicit Blocks(const SelectiveScan& p)
      : p(p), per_group(p.d / p.g), vectors(ceil_div(per_group, lanes<S>)), blocks(ceil_div(vectors, most)) {}

  int64_t parts() const { return p.g * blocks; }

  Block<S, most> block(int64_t task) const {
    const int64_t part = task % parts(), group = part / blocks;
    Block<S, most> out{task / parts(), group, part, 0, {}};
    for (int64_t vector = part % blocks * most; vector < vectors && out.count < most; ++vector) {
      const int64_t start = vector * lanes<S>, left = per_group - start;
      out.at[out.count++] = {group * per_group + start, static_cast<int>(left < lanes<S> ? left : lanes<S>)};
    }
    return out;
  }
};

template <class S>
inline Vec<S> load_or_zero(const void* from, const Channels& at) {
  return from ? load(static_cast<const S*>(from) + at.first, at.count) : Vec<S>{};
}

// (d, n) in memory to n vectors over channels, and back.
template <class S>
inline void gather(const S* matrix, const Channels& at, int64_t n, Vec<S>* to) {
  S lane[lanes<S>] = {};
  for (int64_t i = 0; i < n; ++i) {
    for (int j = 0; j < at.count; ++j) lane[j] = matrix[(at.first + j) * n + i];
    to[i] = load(lane);
  }
}
template <class S>
inline void scatter(const Vec<S>* from, const Channels& at, int64_t n, S* matrix) {
  S lane[lanes<S>];
  for (int64_t i = 0; i < n; ++i) {
    store(lane, from[i]);
    for (int j = 0; j < at.count; ++j) matrix[(at.first + j) * n + i] = lane[j];
  }
}

// Rows of B or C of one group, in arithmetic type.
template <class T>
inline void load_projection(const Rows& from, int64_t b, int64_t t0, int64_t steps, int64_t group, int64_t n,
                            arithmetic_t<T>* to) {
  for (int64_t t = 0; t < steps; ++t) {
    const T* row = from.at<T>(b, t0 + t, group * n);
    for (int64_t i = 0; i < n; ++i) to[t * n + i] = scalar(row[i]);
  }
}

inline void load_starts(const SelectiveScan& p, int64_t b, int64_t t0, int64_t steps, bool* starts) {
  for (int64_t t = 0; t < steps; ++t) starts[t] = p.packing.starts(b, t0 + t, p.l);
}

template <class T>
inline Vec<arithmetic_t<T>> load_at(const Rows& from, int64_t b, int64_t t, const Channels& at) {
  return load(from.at<T>(b, t, at.first), at.count);
}

// Rows lie far apart, and the hardware does not guess the next one: ask for a row of another chunk early.
template <class T>
inline void prefetch(const Rows& from, int64_t b, int64_t t, int64_t l, const Channels& at) {
  if (from.data && t >= 0 && t < l) __builtin_prefetch(from.at<T>(b, t, at.first));
}

// Threads worth waking: a state update costs about as much as a quarter of an element of a memory-bound kernel.
inline int worth(const SelectiveScan& p) { return worth(p.threads, p.b * p.l * p.d * p.n / 4); }

}  // namespace adder::ADDER_ISA
