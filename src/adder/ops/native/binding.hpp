// How Python hands tensors over: addresses and strides as whole numbers, so that nothing here links to PyTorch.
// Python holds the tensors alive for the length of a call; the GIL is released inside.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "arguments.hpp"
#include "weights.hpp"

namespace adder {

namespace nb = nanobind;

using Address = uintptr_t;                             // 0 for a tensor that is not there
using Strided = std::tuple<Address, int64_t, int64_t>;  // address, batch stride, row stride

inline Rows rows(const Strided& from) {
  return {reinterpret_cast<void*>(std::get<0>(from)), std::get<1>(from), std::get<2>(from)};
}

// A weight matrix: kind, rows, columns, address of the numbers or codes, address of the scales.
using MatrixTuple = std::tuple<int, int64_t, int64_t, Address, Address>;

inline Matrix matrix(const MatrixTuple& from) {
  const auto& [kind, rows, columns, data, scales] = from;
  return {static_cast<Weights>(kind), rows, columns, reinterpret_cast<void*>(data), reinterpret_cast<void*>(scales)};
}
template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace adder
