#include <algorithm>

#include "binding.hpp"
#include "selective_scan/cpu.hpp"

namespace adder {
namespace {

using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;  // b, l, d, g, n

// (u, delta, B, C, z), (A, D, delta_bias, state), seq_idx: the inputs both passes read
using Inputs = std::tuple<Strided, Strided, Strided, Strided, Strided>;
using Parameters = std::tuple<Address, Address, Address, Address>;

void set_inputs(SelectiveScan& p, int storage, int threads, const Sizes& sizes, int64_t chunk, bool softplus,
                Address seq_idx, const Inputs& in, const Parameters& parameters, Address saved) {
  p.storage = static_cast<Storage>(storage);
  p.threads = threads;
  std::tie(p.b, p.l, p.d, p.g, p.n) = sizes;
  p.chunk = std::min(chunk, p.l);
  p.softplus = softplus;
  p.packing.seq_idx = pointer<const int32_t>(seq_idx);
  p.u = rows(std::get<0>(in)), p.delta = rows(std::get<1>(in)), p.B = rows(std::get<2>(in));
  p.C = rows(std::get<3>(in)), p.z = rows(std::get<4>(in));
  p.A = pointer(std::get<0>(parameters)), p.D = pointer(std::get<1>(parameters));
  p.delta_bias = pointer(std::get<2>(parameters)), p.state = pointer(std::get<3>(parameters));
  p.saved = pointer(saved);
}

void forward(int storage, int threads, const Sizes& sizes, int64_t chunk, bool softplus, Address seq_idx,
             const Inputs& in, const Parameters& parameters, const Strided& y, Address last, Address saved) {
  SelectiveScan p{};
  set_inputs(p, storage, threads, sizes, chunk, softplus, seq_idx, in, parameters, saved);
  p.y = rows(y), p.last = pointer(last);
  nb::gil_scoped_release release;
  ADDER_PICK(selective_scan)(p);
}

using RowGradients = std::tuple<Strided, Strided, Strided, Strided, Strided>;         // du, ddelta, dB, dC, dz
using ParameterGradients = std::tuple<Address, Address, Address, Address>;            // dA, dD, ddelta_bias, dstate
using Partial = std::tuple<Address, Address, Address, Address, Address>;  // dA, dD, ddelta_bias by row; dB, dC by block

void backward(int storage, int threads, const Sizes& sizes, int64_t chunk, bool softplus, Address seq_idx,
              const Inputs& in, const Parameters& parameters, Address saved, const Strided& dy, Address dlast,
              const RowGradients& by_row, const ParameterGradients& by_parameter, const Partial& partial) {
  SelectiveScanBackward p{};
  set_inputs(p, storage, threads, sizes, chunk, softplus, seq_idx, in, parameters, saved);
  p.dy = rows(dy), p.dlast = pointer(dlast);
  p.du = rows(std::get<0>(by_row)), p.ddelta = rows(std::get<1>(by_row)), p.dB = rows(std::get<2>(by_row));
  p.dC = rows(std::get<3>(by_row)), p.dz = rows(std::get<4>(by_row));
  p.dA = pointer(std::get<0>(by_parameter)), p.dD = pointer(std::get<1>(by_parameter));
  p.ddelta_bias = pointer(std::get<2>(by_parameter)), p.dstate = pointer(std::get<3>(by_parameter));
  p.dA_rows = pointer(std::get<0>(partial)), p.dD_rows = pointer(std::get<1>(partial));
  p.dbias_rows = pointer(std::get<2>(partial));
  p.dB_parts = pointer(std::get<3>(partial)), p.dC_parts = pointer(std::get<4>(partial));
  nb::gil_scoped_release release;
  ADDER_PICK(selective_scan_backward)(p);
}

// How many blocks of channels share the work of a backward pass: the size of the second axis of dB's parts.
int64_t parts(int storage, int64_t d, int64_t g) {
  const int64_t bytes[] = {16, 32, 64};
  const int64_t width = bytes[static_cast<int>(current_isa())] / (storage == 1 ? 8 : 4);
  const int64_t vectors = (d / g + width - 1) / width;
  return g * ((vectors + backward_vectors - 1) / backward_vectors);
}

}  // namespace

void bind_selective_scan(nb::module_& m) {
  m.def("selective_scan", &forward);
  m.def("selective_scan_backward", &backward);
  m.def("selective_scan_parts", &parts);
}

}  // namespace adder
