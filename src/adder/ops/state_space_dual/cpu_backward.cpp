// State space duality, backward: a task is a few heads of one group and batch row. Chunk by chunk from the end it computes
// the states before the chunk's segments again from the one that was saved, then runs the adjoint through them.
#include "cpu_common.hpp"

namespace adder::ADDER_ISA {
namespace {

// A segment of the chunk, and which of the states that are kept is the one before it.
struct Kept {
  Segment at;
  int64_t slot;
};

template <class S>
struct BackwardScratch {
  int64_t state_size, vectors;  // of one head: (n, p) with whole vectors, and vectors of p
  Projections<S> shared;
  Kept* segments;                   // (chunk)
  S *states, *carry;                // (slots, heads, n, p), (heads, n, p): the state before, the gradient of the one after
  S *decay, *weights, *dweights, *dscores;  // (block_steps, block_steps); dscores is summed over heads
  S *x, *q, *scaled;                // (block_steps, p): dt x; the gradient of y before its gate; one of them scaled
  S *x_transposed, *q_transposed;   // (p, block_steps)
  S *dB_transposed, *dC_transposed;  // (n, block_steps), summed over heads
  S* rows;                          // (block_steps, shared.row)
  Sum<S>*dA, *dbias;                // (heads)
  Sum<Vec<S>>* dD;                  // (heads, vectors)

  BackwardScratch(Arena& arena, const StateSpaceDual& call)
      : state_size(call.n * round_up(call.p, lanes<S>)), vectors(ceil_div(call.p, lanes<S>)), shared(arena, call) {
    const int64_t columns = vectors * lanes<S>;
    segments = arena.take<Kept>(call.chunk);
    states = arena.take<S>(ceil_div(call.chunk, block_steps) * backward_heads * state_size);
    carry = arena.take<S>(backward_heads * state_size);
    for (S** each : {&decay, &weights, &dweights, &dscores}) *each = arena.take<S>(block_steps * block_steps);
    for (S** each : {&x, &q, &scaled}) *each = arena.take<S>(block_steps * columns);
    for (S** each : {&x_transposed, &q_transposed}) *each = arena.take<S>(call.p * block_steps);
    for (S** each : {&dB_transposed, &dC_transposed}) *each = arena.take<S>(call.n * block_steps);
    rows = arena.take<S>(block_steps * shared.row);
    dA = arena.take<Sum<S>>(backward_heads), dbias = arena.take<Sum<S>>(backward_heads);
    dD = arena.take<Sum<Vec<S>>>(backward_heads * vectors);
  }
  S* state(const Kept& kept, int64_t i) const {
    return kept.at.fresh ? nullptr : states + (kept.slot * backward_heads + i) * state_size;
  }
};

// Panels (steps, p) to (p, block_steps).
template <class S>
void transpose_panels(const S* from, int64_t steps, int64_t p, S* to) {
  for_panels<S>(p, [&](int64_t c, auto V) {
    transpose(from + c * block_steps, V * lanes<S>, steps, smaller(V * lanes<S>, p - c), to + c * block_steps, block_steps);
  });
}

// One task: heads of one group and batch row.
template <class T>
class Adjoint {
  using S = arithmetic_t<T>;

 public:
  Adjoint(const StateSpaceDualBackward& call, const Heads& heads)
      : call_(call), heads_(heads), s_(scratch_of<BackwardScratch<S>>(call)), carried_(call.dlast != nullptr) {}

  void run() {
    const int64_t size = call_.n * call_.p;
    for (int64_t i = 0; i < heads_.count; ++i) {
      s_.dA[i] = s_.dbias[i] = Sum<S>{};
      if (carried_) load_state(static_cast<const S*>(call_.dlast) + row_and_head(i) * size, call_.n, call_.p, carry(i));
    }
    for (int64_t i = 0; i < heads_.count * s_.vectors; ++i) s_.dD[i] = Sum<Vec<S>>{};
    for (int64_t k = call_.chunks() - 1; k >= 0; --k) {
      int64_t count = restore(k);
      while (count > 0) run_segment(s_.segments[--count]);
    }
    for (int64_t i = 0; i < heads_.count; ++i) {
      static_cast<S*>(call_.dA_rows)[row_and_head(i)] = s_.dA[i].total;
      static_cast<S*>(call_.dbias_rows)[row_and_head(i)] = s_.dbias[i].total;
      for_vectors<S>(call_.p, [&](int64_t c, auto n) {
        store(static_cast<S*>(call_.dD_rows) + row_and_head(i) * call_.p + c, s_.dD[i * s_.vectors + c / lanes<S>].total, n);
      });
      if (call_.dstate) store_state(carry(i), call_.n, call_.p, static_cast<S*>(call_.dstate) + row_and_head(i) * size);
    }
  }

 private:
  int64_t row_and_head(int64_t i) const { return heads_.b * call_.h + heads_.first + i; }
  S* carry(int64_t i) const { return s_.carry + i * s_.state_size; }

  // Lists the segments of a chunk, computes the states before them, and returns how many there are.
  int64_t restore(int64_t k) {
    const int64_t size = call_.n * call_.p, end = smaller(call_.l, (k + 1) * call_.chunk);
    int64_t count = 0, slots = 0;
    for (int64_t t = k * call_.chunk; t < end; t = s_.segments[count++].at.end()) {
      const Segment at = segment_at(call_, heads_.b, t);
      s_.segments[count] = {at, at.fresh ? -1 : slots++};
    }
    for (int64_t i = 0; i < heads_.count; ++i)
      if (S* state = s_.state(s_.segments[0], i))
        load_saved(static_cast<const S*>(call_.saved) +
                       ((heads_.b * call_.chunks() + k) * call_.h + heads_.first + i) * size,
                   call_.n, call_.p, state);
    for (int64_t j = 0; j + 1 < count; ++j) {
      const Kept &before = s_.segments[j], &after = s_.segments[j + 1];
      if (after.at.fresh) continue;
      s_.shared.template load_rows<T>(call_.B, call_, heads_.b, heads_.group, before.at, s_.shared.B);
      for (int64_t i = 0; i < heads_.count; ++i) {
        load_head(before.at, i);
        scale_rows(s_.x, steps_.leave, before.at.steps, call_.p, s_.scaled);
        advance(s_.state(before, i), steps_.whole, s_.shared.B, s_.shared.row, s_.scaled, before.at.steps, call_.n,
                call_.p, s_.state(after, i));
      }
    }
    return count;
  }

  void load_head(const Segment& at, int64_t i) {
    steps_.template load_segment<T>(call_, heads_.b, at, heads_.first + i);
    load_rows<T>(call_.x, call_, heads_.b, at, heads_.first + i, -block_steps, steps_.dt, s_.x);
  }

  void run_segment(const Kept& kept) {
    const Segment& at = kept.at;
    s_.shared.template load_segment<T>(call_, heads_.b, heads_.group, at);
    transpose(s_.shared.B, s_.shared.row, at.steps, call_.n, s_.shared.B_transposed, block_steps);
    std::memset(s_.dscores, 0, sizeof(S) * block_steps * block_steps);
    for (S* each : {s_.dB_transposed, s_.dC_transposed}) std::memset(each, 0, sizeof(S) * call_.n * block_steps);
    for (int64_t i = 0; i < heads_.count; ++i) run_head(kept, i);
    carried_ = !at.fresh;
    add_scores<Direction::earlier>(at, s_.dC_transposed, s_.shared.B, call_.dC_parts);
    add_scores<Direction::later>(at, s_.dB_transposed, s_.shared.C, call_.dB_parts);
  }

  // A part of dC or dB: what came through the state, and through the products of the segment's steps with each other.
  template <Direction direction>
  void add_scores(const Segment& at, const S* through_state, const S* values, void* parts) {
    const int64_t n = call_.n, row = s_.shared.row;
    S* to = static_cast<S*>(parts) + ((heads_.b * call_.g * blocks_of_group(call_.h, call_.g) + heads_.part) * call_.l + at.first) * n;
    transpose(through_state, block_steps, n, at.steps, s_.rows, row);
    for_tiles(at.steps, [&](int64_t t, auto R) {
      constexpr int height = R;
      for_vectors<S>(n, [&](int64_t c, auto count) {
        Vec<S> sum[height][1];
        for (int r = 0; r < height; ++r) sum[r][0] = load(s_.rows + (t + r) * row + c);
        if constexpr (direction == Direction::earlier)
          add_earlier<S>(sum, s_.dscores, t, values + c, row);
        else
          add_later<S>(sum, s_.dscores, t, values + c, row, at.steps);
        for (int r = 0; r < height; ++r) store(to + (t + r) * n + c, sum[r][0], count);
      });
    });
  }

  void run_head(const Kept& kept, int64_t i) {
    const Segment& at = kept.at;
    const int64_t n = call_.n, p = call_.p, head = heads_.first + i;
    const S* before = s_.state(kept, i);
    const S* after = carried_ ? carry(i) : nullptr;
    load_head(at, i);
    ask_for_rows<T>(call_.dx, call_, heads_.b, at, head);
    weigh(steps_.log_decay, at.steps, s_.shared.scores, s_.decay, s_.weights);
    load_gradient(at, head, before);
    transpose_panels(s_.x, at.steps, p, s_.x_transposed);
    transpose_panels(s_.q, at.steps, p, s_.q_transposed);
    for (int64_t s = 0; s < at.steps; s += lanes<S>)  // dweights[s][t] = dt x[s] . q[t], for t >= s
      multiply<S>({s_.x_transposed + s, 1, block_steps}, smaller(lanes<S>, at.steps - s), p, s_.q_transposed + s,
                  block_steps, round_up(at.steps, lanes<S>) - s, s_.dweights + s * block_steps + s, block_steps);

    S entering[block_steps] = {}, leaving[block_steps] = {}, whole = 0;
    if (before)
      add_from_state(before, s_.q_transposed, steps_.enter, s_.shared.C_transposed, at.steps, n, p, s_.dC_transposed, entering);
    if (after)
      add_from_state(after, s_.x_transposed, steps_.leave, s_.shared.B_transposed, at.steps, n, p, s_.dB_transposed, leaving);
    if (before && after) whole = steps_.whole * dot(before, after, n, p);
    S by_A[block_steps], by_x[block_steps];
    log_decay_gradient(at.steps, entering, leaving, whole, by_A);
    input_gradient(at, i, after, by_x);
    step_gradient(at, i, by_A, by_x);
    if (!before) return;
    scale_rows(s_.q, steps_.enter, at.steps, p, s_.scaled);
    advance(after, steps_.whole, s_.shared.C, s_.shared.row, s_.scaled, at.steps, n, p, carry(i));
  }

  // q = dy silu(z), and dz, for which y before its gate is computed again.
  void load_gradient(const Segment& at, int64_t head, const S* before) {
    load_rows<T, S>(call_.dy, call_, heads_.b, at, head, -block_steps, nullptr, s_.q);
    if (!call_.z.data) return;
    project<Direction::earlier>(before, s_.shared.C_transposed, steps_.enter, s_.weights, s_.x, at.steps, call_.n, call_.p,
                                [&](int64_t t, int64_t c, Vec<S> y) {
      const int count = static_cast<int>(smaller(lanes<S>, call_.p - c));
      const int64_t column = head * call_.p + c;
      const auto from = [&](const Rows& each) { return load(each.at<T>(heads_.b, at.first + t, column), count); };
      if (call_.D) y += skip<S>(call_, head, c, count) * from(call_.x);
      const Vec<S> z = from(call_.z), gate = logistic<S>(z), dy = from(call_.dy);
      store(call_.dz.at<T>(heads_.b, at.first + t, column), dy * y * gate * (S(1) + z * (S(1) - gate)), count);
      store(s_.q + panel_offset(t, c), dy * z * gate);
    });
  }

  // Where vector c of row t lies in a matrix (block_steps, p) in panels.
  int64_t panel_offset(int64_t t, int64_t c) const {
    const int64_t first = c / (2 * lanes<S>) * (2 * lanes<S>), row = call_.p - first > lanes<S> ? 2 * lanes<S> : lanes<S>;
    return first * block_steps + t * row + (c - first);
  }

  // by_A[r]: the gradient of a log-decay is that of every sum of log-decays which spans it, from s < r to t >= r, where s may
  // be the state before and t the state after.
  void log_decay_gradient(int64_t steps, const S* entering, const S* leaving, S whole, S* by_A) {
    constexpr int V = block_steps / lanes<S>;
    Vec<S> total[V], spanned[block_steps];  // over s < r, for each t; over t as well but for the lanes
    for (int v = 0; v < V; ++v) total[v] = load(entering + v * lanes<S>);
    for (int64_t r = 0; r < steps; ++r) {
      spanned[r] = Vec<S>{};
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        if ((v + 1) * lanes<S> <= r) continue;
        spanned[r] += keep_lanes<S>(v, r, steps, total[v], Vec<S>{});
        const int64_t at = r * block_steps + v * lanes<S>;
        const auto from = [&](const S* each) { return load(each + at); };
        const Vec<S> dscores = from(s_.dweights) * from(s_.decay);
        store(s_.dscores + at, from(s_.dscores) + dscores);
        total[v] += dscores * from(s_.shared.scores);
      }
    }
    sums<S>(spanned, steps, by_A);
    for (int64_t r = 0; r < steps; ++r) by_A[r] += whole, whole += leaving[r];
  }

  // dx; by_x[t] = the gradient of dt x, times x and summed over its channels; dD.
  void input_gradient(const Segment& at, int64_t i, const S* after, S* by_x) {
    const int64_t head = heads_.first + i;
    Vec<S> products[block_steps] = {};
    project<Direction::later>(after, s_.shared.B_transposed, steps_.leave, s_.weights, s_.q, at.steps, call_.n, call_.p,
                              [&](int64_t t, int64_t c, Vec<S> out) {
      const int count = static_cast<int>(smaller(lanes<S>, call_.p - c));
      const int64_t column = head * call_.p + c;
      if (count < lanes<S>) out = keep_lanes<S>(0, 0, count, out, Vec<S>{});  // no number of a panel's lies behind p
      products[t] += out * load(call_.x.at<T>(heads_.b, at.first + t, column), count);
      out *= steps_.dt[t];
      if (call_.D) out += skip<S>(call_, head, c, count) * load(s_.q + panel_offset(t, c));
      store(call_.dx.at<T>(heads_.b, at.first + t, column), out, count);
    });
    sums<S>(products, at.steps, by_x);
    if (call_.D)
      for_vectors<S>(call_.p, [&](int64_t c, auto count) {
        Vec<S> total = {};
        for (int64_t t = 0; t < at.steps; ++t)
          total += load(s_.q + panel_offset(t, c)) *
                   load(call_.x.at<T>(heads_.b, at.first + t, head * call_.p + c), count);
        s_.dD[i * s_.vectors + c / lanes<S>].add(total);
      });
  }

  // ddt, dA and the bias's gradient.
  void step_gradient(const Segment& at, int64_t i, const S* by_A, const S* by_x) {
    const int64_t head = heads_.first + i;
    const S A = static_cast<const S*>(call_.A)[head];
    double dA = 0, dbias = 0;
    for (int64_t t = 0; t < at.steps; ++t) {
      S ddt = by_A[t] * A + by_x[t];
      if (steps_.free[t] < S(call_.dt_min) || steps_.free[t] > S(call_.dt_max)) ddt = 0;
      if (call_.softplus) ddt *= logistic<S>(splat<S>(steps_.raw[t]))[0];
      *call_.ddt.at<T>(heads_.b, at.first + t, head) = rounded(ddt);
      dA += double(by_A[t]) * steps_.dt[t], dbias += ddt;
    }
    s_.dA[i].add(S(dA)), s_.dbias[i].add(S(dbias));
  }

  static T rounded(S value) {
    T to;
    store(&to, splat<S>(value), 1);
    return to;
  }

  const StateSpaceDualBackward& call_;
  const Heads heads_;
  const BackwardScratch<S> s_;
  Steps<S> steps_;
  bool carried_;  // whether a gradient arrives at the state after the segment
};

template <class T>
void run(const StateSpaceDualBackward& call) {
  using S = arithmetic_t<T>;
  const int64_t blocks = blocks_of_group(call.h, call.g), parts = call.g * blocks;
  auto body = [&](int64_t task) { Adjoint<T>(call, heads_of(call, task, blocks)).run(); };
  parallel_for(call.b * parts, worth(call), body);

  auto sum_blocks = [&](int64_t task) {
    const int64_t group = task % call.g, t = task / call.g % call.l, b = task / call.g / call.l;
    const int64_t first = ((b * parts + group * blocks) * call.l + t) * call.n, apart = call.l * call.n;
    sum_rows<T>(static_cast<const S*>(call.dB_parts) + first, blocks, apart, call.n, call.dB.at<T>(b, t, group * call.n));
    sum_rows<T>(static_cast<const S*>(call.dC_parts) + first, blocks, apart, call.n, call.dC.at<T>(b, t, group * call.n));
  };
  parallel_for(call.b * call.l * call.g, worth(call), sum_blocks);
  auto sum_batch = [&](const void* by_row, int64_t width, void* to) {
    if (to) sum_rows<S>(static_cast<const S*>(by_row), call.b, width, width, static_cast<S*>(to));
  };
  sum_batch(call.dA_rows, call.h, call.dA);
  sum_batch(call.dbias_rows, call.h, call.ddt_bias);
  if (call.skip_by_channel) return sum_batch(call.dD_rows, call.h * call.p, call.dD);
  for (int64_t head = 0; call.dD && head < call.h; ++head) {
    Sum<S> total = {};
    for (int64_t b = 0; b < call.b; ++b)
      for (int64_t c = 0; c < call.p; ++c) total.add(static_cast<const S*>(call.dD_rows)[(b * call.h + head) * call.p + c]);
    static_cast<S*>(call.dD)[head] = total.total;
  }
}

}  // namespace

void state_space_dual_backward(const StateSpaceDualBackward& call) {
  by_storage(call.storage, [&] { run<float>(call); }, [&] { run<double>(call); }, [&] { run<bfloat16>(call); });
}

}  // namespace adder::ADDER_ISA
