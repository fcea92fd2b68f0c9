// Selective scan, backward: a task is a block of vectors of channels of one batch row. Chunk by chunk from the end it
// computes the states of the chunk again from the one saved before it, then runs the adjoint recurrence through them.
#include "cpu_common.hpp"

namespace adder::ADDER_ISA {
namespace {

template <class T>
struct BackwardScratch {
  using S = arithmetic_t<T>;
  // one per vector of the block, kept from chunk to chunk
  Vec<S>*A, *A2, *carry;
  Sum<Vec<S>>* dA;
  Vec<S>* dA_chunk;  // one per state
  // one per step
  Vec<S>*raw, *u, *dt, *dtu, *y, *dy, *by_A, *by_B;
  // one per step and state; the row before `states` is the state before the chunk
  Vec<S>*states, *decays, *dB, *dC;
  S *B, *C;
  bool* starts;
  int64_t bytes;

  BackwardScratch(char* base, const SelectiveScan& p) {
    Arena arena{base};
    for (Vec<S>** each : {&A, &A2, &carry}) *each = arena.take<Vec<S>>(backward_vectors * p.n);
    dA = arena.take<Sum<Vec<S>>>(backward_vectors * p.n), dA_chunk = arena.take<Vec<S>>(p.n);
    for (Vec<S>** each : {&raw, &u, &dt, &dtu, &y, &dy, &by_A, &by_B}) *each = arena.take<Vec<S>>(p.chunk);
    states = arena.take<Vec<S>>((p.chunk + 1) * p.n) + p.n;
    for (Vec<S>** each : {&decays, &dB, &dC}) *each = arena.take<Vec<S>>(p.chunk * p.n);
    B = arena.take<S>(p.chunk * p.n), C = arena.take<S>(p.chunk * p.n);
    starts = arena.take<bool>(p.chunk);
    bytes = arena.used;
  }
};

// One vector of channels, one chunk.
template <class T, class S = arithmetic_t<T>>
void chunk_backward(const SelectiveScanBackward& p, BackwardScratch<T>& s, int64_t b, int64_t k, int vector,
                    const Channels& at, Sum<Vec<S>>& dD, Sum<Vec<S>>& dbias) {
  const int64_t t0 = k * p.chunk, steps = p.l - t0 < p.chunk ? p.l - t0 : p.chunk, n = p.n;
  const Vec<S> D = load_or_zero<S>(p.D, at), bias = load_or_zero<S>(p.delta_bias, at);
  for (int64_t t = 0; t < steps; ++t) {
    for (const Rows* each : {&p.delta, &p.u, &p.dy, &p.z}) prefetch<T>(*each, b, t0 + t - p.chunk, p.l, at);
    for (const Rows* each : {&p.du, &p.ddelta}) __builtin_prefetch(each->at<T>(b, t0 + t, at.first), 1);
    s.raw[t] = load_at<T>(p.delta, b, t0 + t, at) + bias;
    s.u[t] = load_at<T>(p.u, b, t0 + t, at);
    s.dy[t] = load_at<T>(p.dy, b, t0 + t, at);
    s.dt[t] = p.softplus ? softplus<S>(s.raw[t]) : s.raw[t];
    s.dtu[t] = s.dt[t] * s.u[t];
    s.y[t] = D * s.u[t];
    s.by_A[t] = s.by_B[t] = Vec<S>{};
  }
  for (int64_t i = 0; i < n; ++i)
    s.states[i - n] = load(static_cast<const S*>(p.saved) + ((b * p.chunks() + k) * n + i) * p.d + at.first, at.count);
  const Chunk<S> chunk{steps, n, s.starts, s.dt, s.dtu, s.B, s.C, s.A2 + vector * n};
  for_each_block(n, [&](int64_t first, auto N) { recompute_states<S, N>(chunk, first, s.states, s.decays, s.y); });
  if (p.z.data)
    for (int64_t t = 0; t < steps; ++t) {
      const Vec<S> z = load_at<T>(p.z, b, t0 + t, at), gate = logistic<S>(z);
      store(p.dz.at<T>(b, t0 + t, at.first), s.dy[t] * s.y[t] * gate * (S(1) + z * (S(1) - gate)), at.count);
      s.dy[t] *= z * gate;
    }
  for (int64_t i = 0; i < n; ++i) s.dA_chunk[i] = Vec<S>{};
  const Adjoint<S> adjoint{s.states, s.decays, s.dy,   s.A + vector * n, s.carry + vector * n, s.dA_chunk,
                           s.by_A,   s.by_B,   s.dB,   s.dC};
  for_each_block(n, [&](int64_t first, auto N) { adjoint_states<S, N>(chunk, adjoint, first); });
  for (int64_t i = 0; i < n; ++i) s.dA[vector * n + i].add(s.dA_chunk[i]);
  Vec<S> dD_chunk = {}, dbias_chunk = {};
  for (int64_t t = 0; t < steps; ++t) {
    Vec<S> ddelta = s.by_A[t] + s.u[t] * s.by_B[t];
    if (p.softplus) ddelta *= logistic<S>(s.raw[t]);
    store(p.ddelta.at<T>(b, t0 + t, at.first), ddelta, at.count);
    store(p.du.at<T>(b, t0 + t, at.first), s.dt[t] * s.by_B[t] + D * s.dy[t], at.count);
    dbias_chunk += ddelta;
    dD_chunk += s.dy[t] * s.u[t];
  }
  dD.add(dD_chunk), dbias.add(dbias_chunk);
}

template <class T, class S = arithmetic_t<T>>
void run_block(const SelectiveScanBackward& p, const Block<S, backward_vectors>& block, int64_t parts) {
  const int64_t b = block.b, n = p.n;
  BackwardScratch<T> s(static_cast<char*>(scratch(BackwardScratch<T>(nullptr, p).bytes)), p);
  Sum<Vec<S>> dD[backward_vectors] = {}, dbias[backward_vectors] = {};
  for (int v = 0; v < block.count; ++v) {
    gather(static_cast<const S*>(p.A), block.at[v], n, s.A + v * n);
    for (int64_t i = v * n; i < (v + 1) * n; ++i) {
      s.A2[i] = s.A[i] * S(1.4426950408889634);
      s.dA[i] = Sum<Vec<S>>{}, s.carry[i] = Vec<S>{};
    }
    if (p.dlast) gather(static_cast<const S*>(p.dlast) + b * p.d * n, block.at[v], n, s.carry + v * n);
  }
  for (int64_t k = p.chunks() - 1; k >= 0; --k) {
    const int64_t t0 = k * p.chunk, steps = p.l - t0 < p.chunk ? p.l - t0 : p.chunk;
    load_projection<T>(p.B, b, t0, steps, block.group, n, s.B);
    load_projection<T>(p.C, b, t0, steps, block.group, n, s.C);
    load_starts(p, b, t0, steps, s.starts);
    for (int64_t i = 0; i < steps * n; ++i) s.dB[i] = s.dC[i] = Vec<S>{};
    for (int v = 0; v < block.count; ++v) chunk_backward<T>(p, s, b, k, v, block.at[v], dD[v], dbias[v]);
    S* dB = static_cast<S*>(p.dB_parts) + ((b * parts + block.part) * p.l + t0) * n;
    S* dC = static_cast<S*>(p.dC_parts) + ((b * parts + block.part) * p.l + t0) * n;
    sums<S>(s.dB, steps * n, dB);
    sums<S>(s.dC, steps * n, dC);
  }
  for (int v = 0; v < block.count; ++v) {
    const Channels& at = block.at[v];
    for (int64_t i = 0; i < n; ++i) s.dA_chunk[i] = s.dA[v * n + i].total;
    scatter(s.dA_chunk, at, n, static_cast<S*>(p.dA_rows) + b * p.d * n);
    if (p.dstate) scatter(s.carry + v * n, at, n, static_cast<S*>(p.dstate) + b * p.d * n);
    store(static_cast<S*>(p.dD_rows) + b * p.d + at.first, dD[v].total, at.count);
    store(static_cast<S*>(p.dbias_rows) + b * p.d + at.first, dbias[v].total, at.count);
  }
}

template <class T>
void run(const SelectiveScanBackward& p) {
  using S = arithmetic_t<T>;
  const Blocks<S, backward_vectors> blocks(p);
  const int64_t parts = blocks.parts(), per_group = blocks.blocks;
  auto body = [&](int64_t task) { run_block<T>(p, blocks.block(task), parts); };
  parallel_for(p.b * parts, worth(p), body);

  auto sum_parts = [&](int64_t task) {
    const int64_t group = task % p.g, t = task / p.g % p.l, b = task / p.g / p.l;
    const auto first = ((b * parts + group * per_group) * p.l + t) * p.n;
    sum_rows<T>(static_cast<const S*>(p.dB_parts) + first, per_group, p.l * p.n, p.n, p.dB.at<T>(b, t, group * p.n));
    sum_rows<T>(static_cast<const S*>(p.dC_parts) + first, per_group, p.l * p.n, p.n, p.dC.at<T>(b, t, group * p.n));
  };
  parallel_for(p.b * p.l * p.g, worth(p), sum_parts);
  auto sum_batch = [&](const void* by_row, int64_t width, void* to) {
    if (to) sum_rows<S>(static_cast<const S*>(by_row), p.b, width, width, static_cast<S*>(to));
  };
  sum_batch(p.dA_rows, p.d * p.n, p.dA);
  sum_batch(p.dD_rows, p.d, p.dD);
  sum_batch(p.dbias_rows, p.d, p.ddelta_bias);
}

}  // namespace

void selective_scan_backward(const SelectiveScanBackward& p) {
  by_storage(p.storage, [&] { run<float>(p); }, [&] { run<double>(p); }, [&] { run<bfloat16>(p); });
}

}  // namespace adder::ADDER_ISA
