// What every kernel is told: where tensors lie, what they hold, and where packed sequences start.
#pragma once
#include <cstdint>

namespace adder {

// Storage in memory. Arithmetic is float, or double where storage is double.
enum class Storage : int { float32 = 0, float64 = 1, bfloat16 = 2 };

// A tensor (batch, length, channels) whose channels lie side by side. Strides count elements.
struct Rows {
  void* data = nullptr;
  int64_t batch = 0, row = 0;
  template <class T>
  T* at(int64_t b, int64_t t, int64_t channel = 0) const {
    return static_cast<T*>(data) + b * batch + t * row + channel;
  }
};

// Packed sequences: a new one starts at t where seq_idx[b, t] differs from seq_idx[b, t - 1].
struct Packing {
  const int32_t* seq_idx = nullptr;  // (batch, length), contiguous; null means one sequence a row
  bool starts(int64_t b, int64_t t, int64_t length) const {
    return seq_idx && t > 0 && seq_idx[b * length + t] != seq_idx[b * length + t - 1];
  }
};

}  // namespace adder

// Declares a kernel in the namespace of each instruction set, and picks the one this machine runs.
// The signature is void NAME(const ARGUMENTS&).
#if defined(ADDER_HAS_AVX512)
#define ADDER_KERNEL(NAME, ARGUMENTS)                                        \
  namespace adder::portable { void NAME(const ARGUMENTS&); }                 \
  namespace adder::avx2 { void NAME(const ARGUMENTS&); }                     \
  namespace adder::avx512 { void NAME(const ARGUMENTS&); }
#define ADDER_PICK(NAME) ::adder::pick(::adder::portable::NAME, ::adder::avx2::NAME, ::adder::avx512::NAME)
#else
#define ADDER_KERNEL(NAME, ARGUMENTS) \
  namespace adder::portable { void NAME(const ARGUMENTS&); }
#define ADDER_PICK(NAME) ::adder::portable::NAME
#endif

namespace adder {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2 };
Isa current_isa();

template <class F>
F pick(F portable, F avx2, F avx512) {
  const Isa isa = current_isa();
  return isa == Isa::avx512 ? avx512 : isa == Isa::avx2 ? avx2 : portable;
}

}  // namespace adder
