// What memory-bound kernels share: loops over vectors of channels, scratch memory cut into pieces, a switch over
// storage types, and sums over blocks in a fixed order.
#pragma once
#include <new>

#include "arguments.hpp"
#include "pool.hpp"
#include "simd.hpp"

namespace adder::ADDER_ISA {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t round_up(int64_t count, int64_t multiple) { return ceil_div(count, multiple) * multiple; }

// Cuts a thread's scratch memory into aligned pieces. The first pass, with base null, only counts.
struct Arena {
  char* base;
  int64_t used = 0;
  template <class X>
  X* take(int64_t count) {
    char* at = base + used;
    used += ceil_div(count * static_cast<int64_t>(sizeof(X)), 64) * 64;
    return reinterpret_cast<X*>(at);
  }
};

// Aligned memory of one call. Throws std::bad_alloc.
struct Memory {
  char* data;
  explicit Memory(int64_t bytes) : data(static_cast<char*>(::operator new(static_cast<size_t>(bytes), std::align_val_t(64)))) {}
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { ::operator delete(data, std::align_val_t(64)); }
};

// Calls body(c, n) for vectors of channels c .. c + n - 1; n is a constant except in the last, which may be shorter.
template <class S, class F>
inline void for_vectors(int64_t channels, F&& body) {
  int64_t c = 0;
  for (; c + lanes<S> <= channels; c += lanes<S>) body(c, std::integral_constant<int, lanes<S>>{});
  if (c < channels) body(c, static_cast<int>(channels - c));
}

// Waking a thread costs some microseconds: each should have this many elements to work on.
inline int worth(int threads, int64_t elements) {
  const int64_t most = elements / 16384 + 1;
  return static_cast<int>(smaller(threads, most));
}

template <class F32, class F64, class B16>
inline void by_storage(Storage storage, F32 f32, F64 f64, B16 bf16) {
  switch (storage) {
    case Storage::float32: return f32();
    case Storage::float64: return f64();
    case Storage::bfloat16: return bf16();
  }
}

// A sum of many terms, numbers or vectors, that loses nothing to its length (Kahan 1965): a plain one errs by their number.
template <class X>
struct Sum {
  X total, lost;
  void add(X x) {
    x -= lost;
    const X next = total + x;
    lost = (next - total) - x;
    total = next;
  }
};

// `count` rows that lie `apart` from each other, summed in their order into one of storage type T.
template <class T, class S = arithmetic_t<T>>
inline void sum_rows(const S* rows, int64_t count, int64_t apart, int64_t width, T* to) {
  for_vectors<S>(width, [&](int64_t i, auto n) {
    Vec<S> total = load(rows + i, n);
    for (int64_t row = 1; row < count; ++row) total += load(rows + row * apart + i, n);
    store(to + i, total, n);
  });
}

// parts (count, width) summed over count into `to`, in the order of the parts, in double.
template <class S>
inline void sum_parts(const void* parts, int64_t count, int64_t width, void* to, int threads) {
  constexpr int64_t columns = 64;
  auto body = [&](int64_t task) {
    const int64_t first = task * columns, wide = smaller(columns, width - first);
    double total[columns] = {};
    for (int64_t part = 0; part < count; ++part) {
      const S* from = static_cast<const S*>(parts) + part * width + first;
      for (int64_t i = 0; i < wide; ++i) total[i] += from[i];
    }
    for (int64_t i = 0; i < wide; ++i) static_cast<S*>(to)[first + i] = static_cast<S>(total[i]);
  };
  parallel_for(ceil_div(width, columns), worth(threads, count * width), body);
}

}  // namespace adder::ADDER_ISA
