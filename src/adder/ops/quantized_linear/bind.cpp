#include "binding.hpp"
#include "quantized_linear/cpu.hpp"

namespace adder {
namespace {

void forward(int storage, int threads, int64_t count, const MatrixTuple& weight, Address bias, Address x, int64_t x_row,
             Address y) {
  QuantizedLinear p{};
  p.storage = static_cast<Storage>(storage);
  p.threads = threads, p.count = count, p.x_row = x_row;
  p.weight = matrix(weight);
  p.bias = pointer<const float>(bias), p.x = pointer(x), p.y = pointer(y);
  nb::gil_scoped_release release;
  ADDER_PICK(quantized_linear)(p);
}

}  // namespace

void bind_quantized_linear(nb::module_& m) { m.def("quantized_linear", &forward); }

}  // namespace adder
