#include <algorithm>

#include "binding.hpp"
#include "state_space_dual/cpu.hpp"

namespace adder {
namespace {

using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;  // b, l, h, p, g, n, chunk
using Options = std::tuple<bool, double, double, bool>;  // softplus, dt_min, dt_max, whether D is by channel

// (x, dt, B, C, z), (A, D, dt_bias, state), seq_idx: the inputs both passes read
using Inputs = std::tuple<Strided, Strided, Strided, Strided, Strided>;
using Parameters = std::tuple<Address, Address, Address, Address>;

void set_inputs(StateSpaceDual& call, int storage, int threads, const Sizes& sizes, const Options& options,
                Address seq_idx, const Inputs& in, const Parameters& parameters, Address saved) {
  call.storage = static_cast<Storage>(storage);
  call.threads = threads;
  std::tie(call.b, call.l, call.h, call.p, call.g, call.n, call.chunk) = sizes;
  call.chunk = std::min(call.chunk, call.l);
  std::tie(call.softplus, call.dt_min, call.dt_max, call.skip_by_channel) = options;
  call.packing.seq_idx = pointer<const int32_t>(seq_idx);
  call.x = rows(std::get<0>(in)), call.dt = rows(std::get<1>(in)), call.B = rows(std::get<2>(in));
  call.C = rows(std::get<3>(in)), call.z = rows(std::get<4>(in));
  call.A = pointer(std::get<0>(parameters)), call.D = pointer(std::get<1>(parameters));
  call.dt_bias = pointer(std::get<2>(parameters)), call.state = pointer(std::get<3>(parameters));
  call.saved = pointer(saved);
}

void forward(int storage, int threads, const Sizes& sizes, const Options& options, Address seq_idx, const Inputs& in,
             const Parameters& parameters, const Strided& y, Address last, Address saved) {
  StateSpaceDual call{};
  set_inputs(call, storage, threads, sizes, options, seq_idx, in, parameters, saved);
  call.y = rows(y), call.last = pointer(last);
  nb::gil_scoped_release release;
  ADDER_PICK(state_space_dual)(call);
}

using RowGradients = std::tuple<Strided, Strided, Strided, Strided, Strided>;  // dx, ddt, dB, dC, dz
using ParameterGradients = std::tuple<Address, Address, Address, Address>;     // dA, dD, ddt_bias, dstate
using Partial = std::tuple<Address, Address, Address, Address, Address>;  // dA, dD, ddt_bias by row; dB, dC by block

void backward(int storage, int threads, const Sizes& sizes, const Options& options, Address seq_idx, const Inputs& in,
              const Parameters& parameters, Address saved, const Strided& dy, Address dlast, const RowGradients& by_row,
              const ParameterGradients& by_parameter, const Partial& partial) {
  StateSpaceDualBackward call{};
  set_inputs(call, storage, threads, sizes, options, seq_idx, in, parameters, saved);
  call.dy = rows(dy), call.dlast = pointer(dlast);
  call.dx = rows(std::get<0>(by_row)), call.ddt = rows(std::get<1>(by_row)), call.dB = rows(std::get<2>(by_row));
  call.dC = rows(std::get<3>(by_row)), call.dz = rows(std::get<4>(by_row));
  call.dA = pointer(std::get<0>(by_parameter)), call.dD = pointer(std::get<1>(by_parameter));
  call.ddt_bias = pointer(std::get<2>(by_parameter)), call.dstate = pointer(std::get<3>(by_parameter));
  call.dA_rows = pointer(std::get<0>(partial)), call.dD_rows = pointer(std::get<1>(partial));
  call.dbias_rows = pointer(std::get<2>(partial));
  call.dB_parts = pointer(std::get<3>(partial)), call.dC_parts = pointer(std::get<4>(partial));
  nb::gil_scoped_release release;
  ADDER_PICK(state_space_dual_backward)(call);
}

}  // namespace

void bind_state_space_dual(nb::module_& m) {
  m.def("state_space_dual", &forward);
  m.def("state_space_dual_backward", &backward);
  // how many blocks of heads share the work of a backward pass: the second axis of dB's parts
  m.def("state_space_dual_parts", [](int64_t h, int64_t g) { return g * blocks_of_group(h, g); });
}

}  // namespace adder
