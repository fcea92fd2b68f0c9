#include "binding.hpp"
#include "linear_scan/cpu.hpp"

namespace adder {
namespace {

using Sizes = std::tuple<int64_t, int64_t, int64_t>;  // b, l, c

void set_inputs(LinearScan& p, int storage, int threads, const Sizes& sizes, bool reverse, Address seq_idx,
                const Strided& a, const Strided& h, Address state) {
  p.storage = static_cast<Storage>(storage);
  p.threads = threads;
  std::tie(p.b, p.l, p.c) = sizes;
  p.reverse = reverse;
  p.packing.seq_idx = pointer<const int32_t>(seq_idx);
  p.a = rows(a), p.h = rows(h), p.state = pointer(state);
}

void forward(int storage, int threads, const Sizes& sizes, bool reverse, Address seq_idx, const Strided& a,
             const Strided& x, Address state, const Strided& h, Address last) {
  LinearScan p{};
  set_inputs(p, storage, threads, sizes, reverse, seq_idx, a, h, state);
  p.x = rows(x), p.last = pointer(last);
  nb::gil_scoped_release release;
  ADDER_PICK(linear_scan)(p);
}

void backward(int storage, int threads, const Sizes& sizes, bool reverse, Address seq_idx, const Strided& a,
              const Strided& h, Address state, const Strided& dh, Address dlast, const Strided& da, const Strided& dx,
              Address dstate) {
  LinearScanBackward p{};
  set_inputs(p, storage, threads, sizes, reverse, seq_idx, a, h, state);
  p.dh = rows(dh), p.dlast = pointer(dlast);
  p.da = rows(da), p.dx = rows(dx), p.dstate = pointer(dstate);
  nb::gil_scoped_release release;
  ADDER_PICK(linear_scan_backward)(p);
}

}  // namespace

void bind_linear_scan(nb::module_& m) {
  m.def("linear_scan", &forward);
  m.def("linear_scan_backward", &backward);
}

}  // namespace adder
