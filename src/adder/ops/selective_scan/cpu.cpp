// Selective scan, forward: a task is a block of channels of one batch row, over the whole length, chunk by chunk.
#include "cpu_common.hpp"

namespace adder::ADDER_ISA {
namespace {

template <class T>
struct ForwardScratch {
  using S = arithmetic_t<T>;
  // one per vector of the block and per state or step
  Vec<S>*A2, *h, *dt, *dtu, *y;
  S *B, *C;
  bool* starts;
  int64_t bytes;

  ForwardScratch(char* base, const SelectiveScan& p) {
    Arena arena{base};
    A2 = arena.take<Vec<S>>(forward_vectors * p.n), h = arena.take<Vec<S>>(forward_vectors * p.n);
    for (Vec<S>** each : {&dt, &dtu, &y}) *each = arena.take<Vec<S>>(forward_vectors * p.chunk);
    B = arena.take<S>(p.chunk * p.n), C = arena.take<S>(p.chunk * p.n);
    starts = arena.take<bool>(p.chunk);
    bytes = arena.used;
  }
};

template <class T, class S = arithmetic_t<T>>
void run_block(const SelectiveScan& p, const Block<S, forward_vectors>& block) {
  const int64_t b = block.b, n = p.n;
  ForwardScratch<T> s(static_cast<char*>(scratch(ForwardScratch<T>(nullptr, p).bytes)), p);
  Vec<S> D[forward_vectors], bias[forward_vectors];
  for (int v = 0; v < block.count; ++v) {
    const Channels& at = block.at[v];
    D[v] = load_or_zero<S>(p.D, at), bias[v] = load_or_zero<S>(p.delta_bias, at);
    gather(static_cast<const S*>(p.A), at, n, s.A2 + v * n);
    for (int64_t i = v * n; i < (v + 1) * n; ++i) s.A2[i] *= S(1.4426950408889634), s.h[i] = Vec<S>{};
    if (p.state) gather(static_cast<const S*>(p.state) + b * p.d * n, at, n, s.h + v * n);
  }
  for (int64_t k = 0; k < p.chunks(); ++k) {
    const int64_t t0 = k * p.chunk, steps = p.l - t0 < p.chunk ? p.l - t0 : p.chunk;
    load_projection<T>(p.B, b, t0, steps, block.group, n, s.B);
    load_projection<T>(p.C, b, t0, steps, block.group, n, s.C);
    load_starts(p, b, t0, steps, s.starts);
    for (int64_t t = 0; t < steps; ++t)
      for (int v = 0; v < block.count; ++v) {
        const Channels& at = block.at[v];
        const int64_t i = v * p.chunk + t;
        for (const Rows* each : {&p.u, &p.delta, &p.z}) prefetch<T>(*each, b, t0 + t + p.chunk, p.l, at);
        __builtin_prefetch(p.y.at<T>(b, t0 + t, at.first), 1);
        const Vec<S> raw = load_at<T>(p.delta, b, t0 + t, at) + bias[v], u = load_at<T>(p.u, b, t0 + t, at);
        s.dt[i] = p.softplus ? softplus<S>(raw) : raw;
        s.dtu[i] = s.dt[i] * u;
        s.y[i] = D[v] * u;
      }
    for (int v = 0; v < block.count; ++v) {
      Vec<S>*h = s.h + v * n, *y = s.y + v * p.chunk;
      if (p.saved)
        for (int64_t i = 0; i < n; ++i)
          store(static_cast<S*>(p.saved) + ((b * p.chunks() + k) * n + i) * p.d + block.at[v].first, h[i],
                block.at[v].count);
      const Chunk<S> chunk{steps, n, s.starts, s.dt + v * p.chunk, s.dtu + v * p.chunk, s.B, s.C, s.A2 + v * n};
      for_each_block(n, [&](int64_t first, auto N) { scan_states<S, N>(chunk, first, h, y); });
    }
    for (int64_t t = 0; t < steps; ++t)
      for (int v = 0; v < block.count; ++v) {
        const Channels& at = block.at[v];
        Vec<S> y = s.y[v * p.chunk + t];
        if (p.z.data) {
          const Vec<S> z = load_at<T>(p.z, b, t0 + t, at);
          y *= z * logistic<S>(z);
        }
        store(p.y.at<T>(b, t0 + t, at.first), y, at.count);
      }
  }
  for (int v = 0; v < block.count; ++v)
    scatter(s.h + v * n, block.at[v], n, static_cast<S*>(p.last) + b * p.d * n);
}

template <class T>
void run(const SelectiveScan& p) {
  const Blocks<arithmetic_t<T>, forward_vectors> blocks(p);
  auto body = [&](int64_t task) { run_block<T>(p, blocks.block(task)); };
  parallel_for(p.b * blocks.parts(), worth(p), body);
}

}  // namespace

void selective_scan(const SelectiveScan& p) {
  by_storage(p.storage, [&] { run<float>(p); }, [&] { run<double>(p); }, [&] { run<bfloat16>(p); });
}

}  // namespace adder::ADDER_ISA
