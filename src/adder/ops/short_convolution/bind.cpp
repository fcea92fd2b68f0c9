#include "binding.hpp"
#include "short_convolution/cpu.hpp"

namespace adder {
namespace {

using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // b, l, d, k

void set_inputs(ShortConvolution& p, int storage, int threads, const Sizes& sizes, bool silu, Address seq_idx,
                const Strided& x, Address weight, Address bias, Address state) {
  p.storage = static_cast<Storage>(storage);
  p.threads = threads;
  std::tie(p.b, p.l, p.d, p.k) = sizes;
  p.silu = silu;
  p.packing.seq_idx = pointer<const int32_t>(seq_idx);
  p.x = rows(x);
  p.weight = pointer(weight), p.bias = pointer(bias), p.state = pointer(state);
}

void forward(int storage, int threads, const Sizes& sizes, bool silu, Address seq_idx, const Strided& x,
             Address weight, Address bias, Address state, const Strided& y, Address last) {
  ShortConvolution p{};
  set_inputs(p, storage, threads, sizes, silu, seq_idx, x, weight, bias, state);
  p.y = rows(y), p.last = pointer(last);
  nb::gil_scoped_release release;
  ADDER_PICK(short_convolution)(p);
}

void backward(int storage, int threads, const Sizes& sizes, bool silu, Address seq_idx, const Strided& x,
              Address weight, Address bias, Address state, const Strided& dy, Address dlast, const Strided& dx,
              Address dstate, Address dweight_parts, Address dweight) {
  ShortConvolutionBackward p{};
  set_inputs(p, storage, threads, sizes, silu, seq_idx, x, weight, bias, state);
  p.dy = rows(dy), p.dlast = pointer(dlast), p.dx = rows(dx), p.dstate = pointer(dstate);
  p.dweight_parts = pointer(dweight_parts), p.dweight = pointer(dweight);
  nb::gil_scoped_release release;
  ADDER_PICK(short_convolution_backward)(p);
}

int64_t parts(int64_t length) { return (length + convolution_block - 1) / convolution_block; }

}  // namespace

void bind_short_convolution(nb::module_& m) {
  m.def("short_convolution", &forward);
  m.def("short_convolution_backward", &backward);
  m.def("short_convolution_parts", &parts);
}

}  // namespace adder
