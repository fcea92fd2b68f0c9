// What the forward and the backward pass of state space duality share: how a sequence is cut, and how the inputs of a few
// steps reach scratch memory.
#pragma once
#include "math.hpp"
#include "state_space_dual/cpu.hpp"
#include "state_space_dual/cpu_products.hpp"

namespace adder::ADDER_ISA {

// Steps that are multiplied at once. Packed sequences start at the first step of one only, so that nothing within it is
// masked; `fresh`: the state before is zero, or of another sequence, and is not read.
struct Segment {
  int64_t first, steps;
  bool fresh;
  int64_t end() const { return first + steps; }
};

inline Segment segment_at(const StateSpaceDual& call, int64_t b, int64_t first) {
  const int64_t chunk_end = smaller(call.l, (first / call.chunk + 1) * call.chunk);
  const int64_t end = smaller(chunk_end, first + block_steps);
  int64_t t = first + 1;
  while (t < end && !call.packing.starts(b, t, call.l)) ++t;
  return {first, t - first, call.packing.starts(b, first, call.l) || (first == 0 && !call.state)};
}

// Consecutive heads of one group.
struct Heads {
  int64_t b, group, first, count, part;  // part: the index among the blocks of a batch row
  int64_t end() const { return first + count; }
};

// Cuts the heads of every group into `blocks` of about the same size.
inline Heads heads_of(const StateSpaceDual& call, int64_t task, int64_t blocks) {
  const int64_t part = task % (call.g * blocks), group = part / blocks, block = part % blocks;
  const int64_t per_group = call.h / call.g, first = per_group * block / blocks;
  return {task / (call.g * blocks), group, group * per_group + first, per_group * (block + 1) / blocks - first, part};
}

// B and C of a segment and a group: by rows of `row` numbers, zeros behind the n-th, and transposed.
template <class S>
struct Projections {
  int64_t row;
  S *B, *C, *B_transposed, *C_transposed;  // (block_steps, row) twice, (n, block_steps) twice
  S* scores;                               // (block_steps, block_steps): B[s] . C[t]

  Projections(Arena& arena, const StateSpaceDual& call) : row(round_up(call.n, lanes<S>)) {
    B = arena.take<S>(block_steps * row), C = arena.take<S>(block_steps * row);
    B_transposed = arena.take<S>(call.n * block_steps), C_transposed = arena.take<S>(call.n * block_steps);
    scores = arena.take<S>(block_steps * block_steps);
  }

  template <class T>
  void load_rows(const Rows& from, const StateSpaceDual& call, int64_t b, int64_t group, const Segment& at, S* to) const {
    for (int64_t t = 0; t < at.steps; ++t)
      for_vectors<S>(call.n, [&](int64_t i, auto count) {
        store(to + t * row + i, load(from.at<T>(b, at.first + t, group * call.n + i), count));
      });
  }

  template <class T>
  void load_segment(const StateSpaceDual& call, int64_t b, int64_t group, const Segment& at) const {
    load_rows<T>(call.B, call, b, group, at, B), load_rows<T>(call.C, call, b, group, at, C);
    transpose(C, row, at.steps, call.n, C_transposed, block_steps);
    multiply<S>({B, row, 1}, at.steps, call.n, C_transposed, block_steps, round_up(at.steps, lanes<S>), scores, block_steps);
  }
};

template <class Scratch>
Scratch scratch_of(const StateSpaceDual& call) {
  Arena sizes{nullptr};
  Scratch(sizes, call);
  Arena arena{static_cast<char*>(scratch(sizes.used))};
  return Scratch(arena, call);
}

// The steps of one head in a segment. Logs are to the base 2.
template <class S>
struct Steps {
  S raw[block_steps], free[block_steps], dt[block_steps];  // before softplus, before and behind the limits
  S log_decay[block_steps];
  S enter[block_steps];  // the decay from the state before the segment to a step
  S leave[block_steps];  // and from a step to the state after it
  S whole;

  template <class T>
  void load_segment(const StateSpaceDual& call, int64_t b, const Segment& at, int64_t head) {
    const S bias = call.dt_bias ? static_cast<const S*>(call.dt_bias)[head] : 0;
    const S A = static_cast<const S*>(call.A)[head] * S(1.4426950408889634);
    for (int64_t t = 0; t < block_steps; ++t)
      raw[t] = t < at.steps ? scalar(*call.dt.at<T>(b, at.first + t, head)) + bias : 0;
    for (int64_t t = 0; t < block_steps; t += lanes<S>) {
      Vec<S> step = load(raw + t);
      if (call.softplus) step = softplus<S>(step);
      store(free + t, step);
      step = minimum<S>(maximum<S>(step, splat<S>(S(call.dt_min))), splat<S>(S(call.dt_max)));
      store(dt + t, step), store(log_decay + t, step * A);
    }
    S from_start = 0, to_end = 0;
    for (int64_t t = 0; t < at.steps; ++t) {
      enter[t] = from_start += log_decay[t];
      leave[at.steps - 1 - t] = to_end, to_end += log_decay[at.steps - 1 - t];
    }
    for (int64_t t = at.steps; t < block_steps; ++t) enter[t] = leave[t] = 0;
    for (int64_t t = 0; t < block_steps; t += lanes<S>) {
      store(enter + t, exp2<S>(load(enter + t)));
      store(leave + t, exp2<S>(load(leave + t)));
    }
    whole = enter[at.steps - 1];
  }
};

// The lanes of vector v whose index is in first .. end - 1 keep `value`, the others `other`.
template <class S>
inline Vec<S> keep_lanes(int64_t v, int64_t first, int64_t end, Vec<S> value, Vec<S> other) {
  Ints<S> index;
  for (int i = 0; i < lanes<S>; ++i) index[i] = i;
  using Whole = std::remove_reference_t<decltype(index[0])>;
  return (index >= Whole(first - v * lanes<S>) && index < Whole(end - v * lanes<S>)) ? value : other;
}

// decay[s][t] = exp of the log-decays summed over s < r <= t, and weights = decay scores, where t >= s. Every sum is added up
// anew from its end: a difference of two running sums would lose digits, and inf - inf is NaN.
template <class S>
inline void weigh(const S* log_decay, int64_t steps, const S* scores, S* decay, S* weights) {
  constexpr int V = block_steps / lanes<S>;
  Vec<S> total[V] = {};
  for (int64_t s = steps - 1; s >= 0; --s)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      if ((v + 1) * lanes<S> <= s) continue;
      const int64_t at = s * block_steps + v * lanes<S>;
      const Vec<S> each = exp2<S>(total[v]);
      store(decay + at, each), store(weights + at, each * load(scores + at));
      total[v] = keep_lanes<S>(v, s, block_steps, total[v] + log_decay[s], total[v]);
    }
}

// Rows of a head (steps, p) to panels, times dt or as they are. They lie far apart, and the hardware does not guess the next
// one: rows that are so many steps `ahead` are asked for early.
template <class T, class S = arithmetic_t<T>>
inline void load_rows(const Rows& from, const StateSpaceDual& call, int64_t b, const Segment& at, int64_t head, int64_t ahead,
                      const S* by, S* to) {
  const int64_t p = call.p;
  for_panels<S>(p, [&](int64_t c, auto V) {
    for (int64_t t = 0; t < at.steps; ++t)
      for_vectors<S>(smaller(V * lanes<S>, p - c), [&](int64_t v, auto count) {
        const int64_t other = at.first + t + ahead, column = head * p + c + v;
        if (other >= 0 && other < call.l) __builtin_prefetch(from.at<T>(b, other, column));
        const Vec<S> each = load(from.at<T>(b, at.first + t, column), count);
        store(to + c * block_steps + t * V * lanes<S> + v, by ? each * by[t] : each);
      });
  });
}

// Rows of a head that will be written.
template <class T>
inline void ask_for_rows(const Rows& to, const StateSpaceDual& call, int64_t b, const Segment& at, int64_t head) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t t = at.first; t < at.end(); ++t)
    for (int64_t c = 0; c < call.p; c += line) __builtin_prefetch(to.at<T>(b, t, head * call.p + c), 1);
}

// Every row t of (block_steps, p) in panels, times by[t].
template <class S>
inline void scale_rows(const S* from, const S* by, int64_t steps, int64_t p, S* to) {
  for_panels<S>(p, [&](int64_t c, auto V) {
    for (int64_t t = 0; t < steps; ++t)
      for (int v = 0; v < V; ++v) {
        const int64_t at = c * block_steps + (t * V + v) * lanes<S>;
        store(to + at, load(from + at) * by[t]);
      }
  });
}

// A state (p, n) to (n, p) in panels, and back.
template <class S>
inline void load_state(const S* from, int64_t n, int64_t p, S* to) {
  for_panels<S>(p, [&](int64_t c, auto V) {
    transpose(from + c * n, n, smaller(V * lanes<S>, p - c), n, to + c * n, V * lanes<S>);
  });
}
template <class S>
inline void store_state(const S* from, int64_t n, int64_t p, S* to) {
  for_panels<S>(p, [&](int64_t c, auto V) {
    transpose(from + c * n, V * lanes<S>, n, smaller(V * lanes<S>, p - c), to + c * n, n);
  });
}

// (n, p) row by row to panels, and back.
template <class S>
inline void load_saved(const S* from, int64_t n, int64_t p, S* to) {
  for_panels<S>(p, [&](int64_t c, auto V) {
    for (int64_t i = 0; i < n; ++i)
      for_vectors<S>(smaller(V * lanes<S>, p - c), [&](int64_t v, auto count) {
        store(to + c * n + i * V * lanes<S> + v, load(from + i * p + c + v, count));
      });
  });
}
template <class S>
inline void store_saved(const S* from, int64_t n, int64_t p, S* to) {
  for_panels<S>(p, [&](int64_t c, auto V) {
    for (int64_t i = 0; i < n; ++i)
      for_vectors<S>(smaller(V * lanes<S>, p - c), [&](int64_t v, auto count) {
        store(to + i * p + c + v, load(from + c * n + i * V * lanes<S> + v), count);
      });
  });
}

// D of a head's channels, from c on.
template <class S>
inline Vec<S> skip(const StateSpaceDual& call, int64_t head, int64_t c, int count) {
  if (!call.D) return Vec<S>{};
  const S* D = static_cast<const S*>(call.D);
  return call.skip_by_channel ? load(D + head * call.p + c, count) : splat<S>(D[head]);
}

// Threads worth waking: a state update costs about as much as a sixteenth of an element of a memory-bound kernel.
inline int worth(const StateSpaceDual& call) { return worth(call.threads, call.b * call.l * call.h * call.p * call.n / 16); }

}  // namespace adder::ADDER_ISA
