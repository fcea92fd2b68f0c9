// State space duality, forward: a task is a few heads of one group and batch row, over the whole length, segment by segment.
// They share B, C and their products; the states stay in the thread's cache.
#include "cpu_common.hpp"
#include "cpu_step.hpp"

namespace adder::ADDER_ISA {
namespace {

constexpr int64_t most_heads = 16;  // of a task, so that their states fit in the cache
constexpr int64_t few_steps = 4;    // below which turning the states around costs more than it saves

template <class S>
struct ForwardScratch {
  Projections<S> shared;
  S *states, *decay, *weights, *x, *leaving;  // (heads, n, p), (block_steps, block_steps) twice, (block_steps, p) twice

  ForwardScratch(Arena& arena, const StateSpaceDual& call) : shared(arena, call) {
    const int64_t columns = round_up(call.p, lanes<S>);
    states = arena.take<S>(most_heads * call.n * columns);
    decay = arena.take<S>(block_steps * block_steps), weights = arena.take<S>(block_steps * block_steps);
    x = arena.take<S>(block_steps * columns), leaving = arena.take<S>(block_steps * columns);
  }
};

// y = (out + D x) silu(z), of one vector of channels.
template <class T, class S = arithmetic_t<T>>
void finish(const StateSpaceDual& call, int64_t b, int64_t t, int64_t head, int64_t c, Vec<S> out) {
  const int count = static_cast<int>(smaller(lanes<S>, call.p - c));
  const int64_t at = head * call.p + c;
  if (call.D) out += skip<S>(call, head, c, count) * load(call.x.at<T>(b, t, at), count);
  if (call.z.data) {
    const Vec<S> z = load(call.z.at<T>(b, t, at), count);
    out *= z * logistic<S>(z);
  }
  store(call.y.at<T>(b, t, at), out, count);
}

template <class T, class S = arithmetic_t<T>>
void run_segment(const StateSpaceDual& call, const Segment& at, int64_t b, int64_t head, ForwardScratch<S>& s, S* state) {
  Steps<S> steps;
  steps.template load_segment<T>(call, b, at, head);
  load_rows<T>(call.x, call, b, at, head, block_steps, steps.dt, s.x);
  ask_for_rows<T>(call.y, call, b, at, head);
  scale_rows(s.x, steps.leave, at.steps, call.p, s.leaving);
  weigh(steps.log_decay, at.steps, s.shared.scores, s.decay, s.weights);
  S* before = at.fresh ? nullptr : state;
  project<Direction::earlier>(before, s.shared.C_transposed, steps.enter, s.weights, s.x, at.steps, call.n, call.p,
                              [&](int64_t t, int64_t c, Vec<S> out) { finish<T>(call, b, at.first + t, head, c, out); });
  advance(before, steps.whole, s.shared.B, s.shared.row, s.leaving, at.steps, call.n, call.p, state);
}

template <class T, class S = arithmetic_t<T>>
void run_heads(const StateSpaceDual& call, const Heads& heads) {
  auto s = scratch_of<ForwardScratch<S>>(call);
  const int64_t b = heads.b, size = call.n * call.p, padded = call.n * round_up(call.p, lanes<S>);
  for (int64_t i = 0; i < heads.count; ++i)
    if (call.state)
      load_state(static_cast<const S*>(call.state) + (b * call.h + heads.first + i) * size, call.n, call.p, s.states + i * padded);
    else
      std::memset(s.states + i * padded, 0, padded * sizeof(S));
  for (int64_t t = 0; t < call.l;) {
    const Segment at = segment_at(call, b, t);
    s.shared.template load_segment<T>(call, b, heads.group, at);
    for (int64_t i = 0; i < heads.count; ++i) {
      const int64_t head = heads.first + i;
      S* state = s.states + i * padded;
      if (call.saved && t % call.chunk == 0)
        store_saved(state, call.n, call.p,
                    static_cast<S*>(call.saved) + ((b * call.chunks() + t / call.chunk) * call.h + head) * size);
      run_segment<T>(call, at, b, head, s, state);
    }
    t = at.end();
  }
  for (int64_t i = 0; i < heads.count; ++i)
    store_state(s.states + i * padded, call.n, call.p, static_cast<S*>(call.last) + (b * call.h + heads.first + i) * size);
}

template <class S>
struct StepScratch {
  S *B, *C, *x, *y;  // (n) twice, (p) twice; x is dt x

  StepScratch(Arena& arena, const StateSpaceDual& call) {
    for (S** each : {&B, &C}) *each = arena.take<S>(round_up(call.n, lanes<S>));
    for (S** each : {&x, &y}) *each = arena.take<S>(round_up(call.p, lanes<S>));
  }
};

// A few steps of one head, one after the other.
template <class T, class S = arithmetic_t<T>>
void run_steps(const StateSpaceDual& call, int64_t b, int64_t head) {
  const auto s = scratch_of<StepScratch<S>>(call);
  const int64_t n = call.n, p = call.p, group = head / (call.h / call.g), first = (b * call.h + head) * n * p;
  Steps<S> steps;
  steps.template load_segment<T>(call, b, Segment{0, call.l, false}, head);
  S* after = static_cast<S*>(call.last) + first;
  const S* before = call.state ? static_cast<const S*>(call.state) + first : nullptr;
  for (int64_t t = 0; t < call.l; ++t, before = after) {
    for_vectors<S>(n, [&](int64_t i, auto count) {
      store(s.B + i, load(call.B.at<T>(b, t, group * n + i), count));
      store(s.C + i, load(call.C.at<T>(b, t, group * n + i), count));
    });
    for_vectors<S>(p, [&](int64_t c, auto count) {
      store(s.x + c, load(call.x.at<T>(b, t, head * p + c), count) * steps.dt[t]);
    });
    if (call.packing.starts(b, t, call.l)) before = nullptr;
    const S decay = exp2<S>(splat<S>(steps.log_decay[t]))[0];
    step_head(before, decay, s.x, s.B, s.C, p, n, after, s.y);
    for (int64_t c = 0; c < p; c += lanes<S>) finish<T>(call, b, t, head, c, load(s.y + c));
  }
}

template <class T>
void run(const StateSpaceDual& call) {
  if (call.l <= few_steps && !call.saved) {
    auto body = [&](int64_t task) { run_steps<T>(call, task / call.h, task % call.h); };
    return parallel_for(call.b * call.h, worth(call), body);
  }
  // The numbers of a head do not depend on the heads beside it, so the tasks may depend on the threads.
  const int64_t per_group = call.h / call.g, threads = worth(call);
  const int64_t wanted = ceil_div(threads, call.b * call.g), needed = ceil_div(per_group, most_heads);
  const int64_t blocks = smaller(per_group, wanted > needed ? wanted : needed);
  auto body = [&](int64_t task) { run_heads<T>(call, heads_of(call, task, blocks)); };
  parallel_for(call.b * call.g * blocks, static_cast<int>(threads), body);
}

}  // namespace

void state_space_dual(const StateSpaceDual& call) {
  by_storage(call.storage, [&] { run<float>(call); }, [&] { run<double>(call); }, [&] { run<bfloat16>(call); });
}

}  // namespace adder::ADDER_ISA
