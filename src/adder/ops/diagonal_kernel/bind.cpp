#include "binding.hpp"
#include "diagonal_kernel/cpu.hpp"

namespace adder {
namespace {

using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // c, h, m, l

void set_powers(DiagonalPowers& p, int storage, int threads, const Sizes& sizes, bool pairs, Address z) {
  p.storage = static_cast<Storage>(storage);
  p.threads = threads;
  std::tie(p.c, p.h, p.m, p.l) = sizes;
  p.pairs = pairs;
  p.z = pointer<const double>(z);
}

void kernel(int storage, int threads, const Sizes& sizes, bool pairs, Address z, Address w, Address K) {
  DiagonalKernel p{};
  set_powers(p, storage, threads, sizes, pairs, z);
  p.w = pointer<const double>(w), p.K = pointer(K);
  nb::gil_scoped_release release;
  ADDER_PICK(diagonal_kernel)(p);
}

void moments(int storage, int threads, const Sizes& sizes, bool pairs, Address z, Address dK, Address sums,
             Address parts) {
  DiagonalMoments p{};
  set_powers(p, storage, threads, sizes, pairs, z);
  p.dK = pointer(dK), p.sums = pointer<double>(sums), p.parts = pointer<double>(parts);
  nb::gil_scoped_release release;
  ADDER_PICK(diagonal_moments)(p);
}

int64_t blocks(int64_t length) {
  DiagonalPowers p{};
  p.l = length;
  return p.blocks();
}

}  // namespace

void bind_diagonal_kernel(nb::module_& m) {
  m.def("diagonal_kernel", &kernel);
  m.def("diagonal_moments", &moments);
  m.def("diagonal_blocks", &blocks);
}

}  // namespace adder
