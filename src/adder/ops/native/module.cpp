// The compiled module: picks an instruction set once, and binds each operator's kernels.
#include <stdexcept>
#include <string>

#include "binding.hpp"
#include "weights.hpp"

namespace adder {

namespace {

bool runs(Isa isa) {
#if defined(ADDER_HAS_AVX512)
  __builtin_cpu_init();
  if (isa == Isa::avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && runs(Isa::avx2);
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return isa == Isa::portable;
}

Isa chosen = runs(Isa::avx512) ? Isa::avx512 : runs(Isa::avx2) ? Isa::avx2 : Isa::portable;

constexpr const char* names[] = {"portable", "avx2", "avx512"};

void use_isa(const std::string& name) {
  for (int i = 0; i < 3; ++i)
    if (name == names[i]) {
      if (!runs(static_cast<Isa>(i))) throw std::invalid_argument("this machine does not run " + name + " kernels");
      chosen = static_cast<Isa>(i);
      return;
    }
  throw std::invalid_argument("isa is one of portable, avx2, avx512, not " + name);
}

bool dot_products = true;

#if defined(ADDER_HAS_AVX512)
const bool vnni = (__builtin_cpu_init(), __builtin_cpu_supports("avx512vnni"));
const bool bf16_dot = (__builtin_cpu_init(), __builtin_cpu_supports("avx512bf16"));
#else
constexpr bool vnni = false, bf16_dot = false;
#endif

}  // namespace

Isa current_isa() { return chosen; }
bool has_vnni() { return vnni && dot_products && chosen == Isa::avx512; }
bool has_bf16_dot() { return bf16_dot && dot_products && chosen == Isa::avx512; }

void bind_diagonal_kernel(nb::module_&);
void bind_dplr_kernel(nb::module_&);
void bind_gated_norm(nb::module_&);
void bind_linear_scan(nb::module_&);
void bind_long_convolution(nb::module_&);
void bind_mamba_step(nb::module_&);
void bind_quantized_linear(nb::module_&);
void bind_selective_scan(nb::module_&);
void bind_short_convolution(nb::module_&);
void bind_state_space_dual(nb::module_&);

}  // namespace adder

NB_MODULE(_native, m) {
  m.doc() = "adder's C++ kernels. They know nothing of PyTorch: adder.ops hands them addresses and strides.";
  m.def("isa", [] { return adder::names[static_cast<int>(adder::chosen)]; }, "The instruction set in use.");
  m.def("use_isa", &adder::use_isa, nanobind::arg("name"), "Use another instruction set: for tests and benchmarks.");
  m.def("dot_products", [] { return std::tuple(adder::has_vnni(), adder::has_bf16_dot()); },
        "Whether AVX-512 VNNI and AVX-512 BF16 serve.");
  m.def("use_dot_products", [](bool on) { adder::dot_products = on; }, "Leave them out, or take them in again: for tests.");
  adder::bind_diagonal_kernel(m);
  adder::bind_dplr_kernel(m);
  adder::bind_gated_norm(m);
  adder::bind_linear_scan(m);
  adder::bind_long_convolution(m);
  adder::bind_mamba_step(m);
  adder::bind_quantized_linear(m);
  adder::bind_selective_scan(m);
  adder::bind_short_convolution(m);
  adder::bind_state_space_dual(m);
}
