#include "binding.hpp"
#include "gated_norm/cpu.hpp"

namespace adder {
namespace {

using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // b, l, d, group

void set_inputs(GatedNorm& p, int storage, int threads, const Sizes& sizes, double eps, bool norm_before_gate,
                const Strided& y, const Strided& z, Address weight) {
  p.storage = static_cast<Storage>(storage);
  p.threads = threads;
  std::tie(p.b, p.l, p.d, p.group) = sizes;
  p.eps = eps;
  p.norm_before_gate = norm_before_gate;
  p.y = rows(y), p.z = rows(z), p.weight = pointer(weight);
}

void forward(int storage, int threads, const Sizes& sizes, double eps, bool norm_before_gate, const Strided& y,
             const Strided& z, Address weight, const Strided& out) {
  GatedNorm p{};
  set_inputs(p, storage, threads, sizes, eps, norm_before_gate, y, z, weight);
  p.out = rows(out);
  nb::gil_scoped_release release;
  ADDER_PICK(gated_norm)(p);
}

void backward(int storage, int threads, const Sizes& sizes, double eps, bool norm_before_gate, const Strided& y,
              const Strided& z, Address weight, const Strided& dout, const Strided& dy, const Strided& dz,
              Address dweight_parts, Address dweight) {
  GatedNormBackward p{};
  set_inputs(p, storage, threads, sizes, eps, norm_before_gate, y, z, weight);
  p.dout = rows(dout), p.dy = rows(dy), p.dz = rows(dz);
  p.dweight_parts = pointer(dweight_parts), p.dweight = pointer(dweight);
  nb::gil_scoped_release release;
  ADDER_PICK(gated_norm_backward)(p);
}

int64_t parts(int64_t rows) { return (rows + norm_block - 1) / norm_block; }

}  // namespace

void bind_gated_norm(nb::module_& m) {
  m.def("gated_norm", &forward);
  m.def("gated_norm_backward", &backward);
  m.def("gated_norm_parts", &parts);
}

}  // namespace adder
