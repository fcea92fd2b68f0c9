// The inner loops of the selective scan: one vector of channels, one chunk of time, a block of N states at once in
// registers. Everything here lies in a thread's scratch memory, in arithmetic type S.
#pragma once
#include "math.hpp"

namespace adder::ADDER_ISA {

// Calls block(first, N as a constant) over the states 0 .. n-1, sixteen at a time and then by halves.
template <class F>
inline void for_each_block(int64_t n, F&& block) {
  int64_t first = 0;
  for (; first + 16 <= n; first += 16) block(first, std::integral_constant<int, 16>{});
  if (n & 8) block(first, std::integral_constant<int, 8>{}), first += 8;
  if (n & 4) block(first, std::integral_constant<int, 4>{}), first += 4;
  if (n & 2) block(first, std::integral_constant<int, 2>{}), first += 2;
  if (n & 1) block(first, std::integral_constant<int, 1>{});
}

// One chunk: per step a vector of channels, and rows of B and C as scalars of arithmetic type, n apart.
template <class S>
struct Chunk {
  int64_t steps, n;
  const bool* starts;       // (steps): a packed sequence starts here
  const Vec<S>*dt, *dtu;    // (steps): delta and delta u
  const S *B, *C;           // (steps, n)
  const Vec<S>* A2;         // (n): A log2(e)
};

// h[t] = exp(dt A) h[t-1] + dt u B;  y[t] += C h
template <class S, int N>
inline void scan_states(const Chunk<S>& c, int64_t first, Vec<S>* h_all, Vec<S>* y) {
  Vec<S> h[N];
  for (int i = 0; i < N; ++i) h[i] = h_all[first + i];
  for (int64_t t = 0; t < c.steps; ++t) {
    if (c.starts[t])
      for (int i = 0; i < N; ++i) h[i] = Vec<S>{};
    const S *B = c.B + t * c.n + first, *C = c.C + t * c.n + first;
    const Vec<S> dt = c.dt[t], dtu = c.dtu[t];
    Vec<S> sum[2] = {y[t], Vec<S>{}};
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      h[i] = exp2<S>(dt * c.A2[first + i]) * h[i] + dtu * B[i];
      sum[i % 2] += h[i] * C[i];
    }
    y[t] = sum[0] + sum[1];
  }
  for (int i = 0; i < N; ++i) h_all[first + i] = h[i];
}

// The same, keeping every state and decay of the chunk: states[t] and decays[t], n apart.
// states[-n .. -1] must hold the state before the chunk. With_y: y is wanted as well.
template <class S, int N>
inline void recompute_states(const Chunk<S>& c, int64_t first, Vec<S>* states, Vec<S>* decays, Vec<S>* y) {
  Vec<S> h[N];
  for (int i = 0; i < N; ++i) h[i] = states[first + i - c.n];
  for (int64_t t = 0; t < c.steps; ++t) {
    const S *B = c.B + t * c.n + first, *C = c.C + t * c.n + first;
    const Vec<S> dt = c.dt[t], dtu = c.dtu[t];
    Vec<S>*keep_h = states + t * c.n + first, *keep_a = decays + t * c.n + first;
    Vec<S> sum = y[t];
    const bool starts = c.starts[t];
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      Vec<S> a = starts ? Vec<S>{} : exp2<S>(dt * c.A2[first + i]);
      h[i] = (starts ? Vec<S>{} : a * h[i]) + dtu * B[i];
      keep_a[i] = a;
      keep_h[i] = h[i];
      sum += h[i] * C[i];
    }
    y[t] = sum;
  }
}

// What the adjoint of one chunk adds up, per step and per state.
template <class S>
struct Adjoint {
  const Vec<S>*states, *decays;  // (steps, n); states[-n ..] before the chunk
  const Vec<S>* dy;              // (steps): the gradient of C h
  const Vec<S>* A;               // (n)
  Vec<S>* carry;                 // (n): the gradient of h[t] from the steps after t
  Vec<S>* dA;                    // (n)
  Vec<S>*by_A, *by_B;            // (steps): sum over states of w A and of dh B
  Vec<S>*dB, *dC;                // (steps, n): summed over the vectors of a block
};

// dh = C dy + carry;  carry = a dh;  w = a dh h[t-1], the gradient of the exponent dt A
template <class S, int N>
inline void adjoint_states(const Chunk<S>& c, const Adjoint<S>& g, int64_t first) {
  Vec<S> carry[N];
  for (int i = 0; i < N; ++i) carry[i] = g.carry[first + i];
  for (int64_t t = c.steps - 1; t >= 0; --t) {
    const int64_t at = t * c.n + first;
    const S *B = c.B + at, *C = c.C + at;
    const Vec<S> dt = c.dt[t], dtu = c.dtu[t], dy = g.dy[t];
    const Vec<S>*h = g.states + at, *before = h - c.n, *a = g.decays + at;
    const bool starts = c.starts[t];
    Vec<S> by_A = g.by_A[t], by_B = g.by_B[t];
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      Vec<S> dh = carry[i] + dy * C[i];
      carry[i] = dh * a[i];
      Vec<S> w = starts ? Vec<S>{} : carry[i] * before[i];
      g.dC[at + i] += dy * h[i];
      g.dB[at + i] += dh * dtu;
      g.dA[first + i] += w * dt;
      by_A += w * g.A[first + i];
      by_B += dh * B[i];
    }
    g.by_A[t] = by_A;
    g.by_B[t] = by_B;
  }
  for (int i = 0; i < N; ++i) g.carry[first + i] = carry[i];
}

}  // namespace adder::ADDER_ISA
