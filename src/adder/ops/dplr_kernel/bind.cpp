#include "binding.hpp"
#include "dplr_kernel/cpu.hpp"

namespace adder {
namespace {

using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;  // h, n, c, l, steps

void set_inputs(DplrKernel& p, int storage, int threads, const Sizes& sizes, Address Abar, Address Bbar, Address C) {
  p.storage = static_cast<Storage>(storage);
  p.threads = threads;
  std::tie(p.h, p.n, p.c, p.l, p.steps) = sizes;
  p.Abar = pointer<const double>(Abar), p.Bbar = pointer<const double>(Bbar), p.C = pointer<const double>(C);
}

void forward(int storage, int threads, const Sizes& sizes, Address Abar, Address Bbar, Address C, Address K) {
  DplrKernel p{};
  set_inputs(p, storage, threads, sizes, Abar, Bbar, C);
  p.K = pointer(K);
  nb::gil_scoped_release release;
  ADDER_PICK(dplr_kernel)(p);
}

void backward(int storage, int threads, const Sizes& sizes, Address Abar, Address Bbar, Address C, Address dK,
              Address dAbar, Address dBbar, Address dC) {
  DplrKernelBackward p{};
  set_inputs(p, storage, threads, sizes, Abar, Bbar, C);
  p.dK = pointer(dK);
  p.dAbar = pointer<double>(dAbar), p.dBbar = pointer<double>(dBbar), p.dC = pointer<double>(dC);
  nb::gil_scoped_release release;
  ADDER_PICK(dplr_kernel_backward)(p);
}

}  // namespace

void bind_dplr_kernel(nb::module_& m) {
  m.def("dplr_kernel", &forward);
  m.def("dplr_kernel_backward", &backward);
}

}  // namespace adder
