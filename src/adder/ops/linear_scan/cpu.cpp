// Linear scan: a task is a block of channels of one batch row, over the whole length. Rows are read and written once,
// in order; the state of a block stays in the first cache. Channels never meet, so no split changes a result.
#include "linear_scan/cpu.hpp"

#include "kernel.hpp"

namespace adder::ADDER_ISA {
namespace {

constexpr int64_t block_bytes = 2048, ahead = 4;

// Channels of a task: whole vectors, fewer where there would be less than two tasks for each thread.
template <class S>
int64_t block_channels(const LinearScan& p) {
  int64_t block = block_bytes / static_cast<int64_t>(sizeof(S));
  while (block > 4 * lanes<S> && p.b * ceil_div(p.c, block) < 2 * p.threads) block /= 2;
  return block;
}

template <class S, class F>
void for_blocks(const LinearScan& p, F block) {
  const int64_t channels = block_channels<S>(p), blocks = ceil_div(p.c, channels);
  auto body = [&](int64_t task) {
    const int64_t first = task % blocks * channels;
    block(task / blocks, first, smaller(channels, p.c - first));
  };
  parallel_for(p.b * blocks, worth(p.threads, p.b * p.l * p.c), body);
}

// A row of scratch, from memory or zero.
template <class S>
void begin(S* row, const void* from, int64_t offset, int64_t count) {
  const S* source = static_cast<const S*>(from);
  for (int64_t c = 0; c < count; ++c) row[c] = source ? source[offset + c] : S(0);
}

template <class T>
void prefetch_row(const T* row, int64_t count) {
  for (int64_t c = 0; c < count; c += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + c);
}

template <class T>
void forward_block(const LinearScan& p, int64_t b, int64_t first, int64_t count) {
  using S = arithmetic_t<T>;
  S* const state = static_cast<S*>(scratch(block_bytes));
  begin(state, p.state, b * p.c + first, count);
  for (int64_t s = 0; s < p.l; ++s) {
    const int64_t t = p.time(s);
    const T *a = p.a.at<const T>(b, t, first), *x = p.x.at<const T>(b, t, first);
    T* h = p.h.at<T>(b, t, first);
    if (s + ahead < p.l) {
      prefetch_row(p.a.at<const T>(b, p.time(s + ahead), first), count);
      prefetch_row(p.x.at<const T>(b, p.time(s + ahead), first), count);
    }
    if (p.starts(b, s)) begin(state, nullptr, 0, count);
    for_vectors<S>(count, [&](int64_t c, auto n) {
      const Vec<S> next = load(a + c, n) * load(state + c, n) + load(x + c, n);
      store(state + c, next, n);
      store(h + c, next, n);
    });
  }
  S* last = static_cast<S*>(p.last) + b * p.c + first;
  for (int64_t c = 0; c < count; ++c) last[c] = state[c];
}

// dx[t] = dh[t] + a[t+1] dx[t+1];  da[t] = dx[t] h[t-1]
template <class T>
void backward_block(const LinearScanBackward& p, int64_t b, int64_t first, int64_t count) {
  using S = arithmetic_t<T>;
  S* const carry = static_cast<S*>(scratch(2 * block_bytes));
  S* const before = carry + block_bytes / sizeof(S);
  begin(carry, p.dlast, b * p.c + first, count);
  for (int64_t s = p.l - 1; s >= 0; --s) {
    const int64_t t = p.time(s);
    const T *a = p.a.at<const T>(b, t, first), *dh = p.dh.at<const T>(b, t, first);
    T *da = p.da.at<T>(b, t, first), *dx = p.dx.at<T>(b, t, first);
    if (s >= ahead) {
      prefetch_row(p.a.at<const T>(b, p.time(s - ahead), first), count);
      prefetch_row(p.dh.at<const T>(b, p.time(s - ahead), first), count);
      prefetch_row(p.h.at<const T>(b, p.time(s - ahead), first), count);
    }
    auto step = [&](auto* h) {
      for_vectors<S>(count, [&](int64_t c, auto n) {
        const Vec<S> grad = load(dh + c, n) + load(carry + c, n);
        store(dx + c, grad, n);
        store(da + c, grad * load(h + c, n), n);
        store(carry + c, grad * load(a + c, n), n);
      });
    };
    if (s > 0 && !p.starts(b, s)) {
      step(p.h.at<const T>(b, p.time(s - 1), first));
      continue;
    }
    begin(before, s == 0 ? p.state : nullptr, b * p.c + first, count);
    step(before);
    if (s > 0) begin(carry, nullptr, 0, count);
  }
  S* dstate = static_cast<S*>(p.dstate) + b * p.c + first;
  for (int64_t c = 0; c < count; ++c) dstate[c] = carry[c];
}

template <class T>
void forward(const LinearScan& p) {
  for_blocks<arithmetic_t<T>>(p, [&](int64_t b, int64_t first, int64_t count) { forward_block<T>(p, b, first, count); });
}
template <class T>
void backward(const LinearScanBackward& p) {
  for_blocks<arithmetic_t<T>>(p, [&](int64_t b, int64_t first, int64_t count) { backward_block<T>(p, b, first, count); });
}

}  // namespace

void linear_scan(const LinearScan& p) {
  by_storage(p.storage, [&] { forward<float>(p); }, [&] { forward<double>(p); }, [&] { forward<bfloat16>(p); });
}
void linear_scan_backward(const LinearScanBackward& p) {
  by_storage(p.storage, [&] { backward<float>(p); }, [&] { backward<double>(p); }, [&] { backward<bfloat16>(p); });
}

}  // namespace adder::ADDER_ISA
