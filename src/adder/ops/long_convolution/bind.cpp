#include "binding.hpp"
#include "long_convolution/cpu.hpp"
#include "long_convolution/transform.hpp"

namespace adder {
namespace {

using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;  // b, l, h, c, k

int64_t lanes_here(Storage storage) {
  const int bytes[] = {16, 32, 64};
  return bytes[static_cast<int>(current_isa())] / (storage == Storage::float64 ? 8 : 4);
}
int64_t vectors(const LongConvolution& p) {
  const int64_t lanes = lanes_here(p.storage);
  return (p.h + lanes - 1) / lanes;
}

void set_sizes(LongConvolution& p, int storage, const Sizes& sizes, bool state, bool backward) {
  p.storage = static_cast<Storage>(storage);
  std::tie(p.b, p.l, p.h, p.c, p.k) = sizes;
  p.taps = state ? p.k : std::min(p.k, p.l), p.before = state ? p.k - 1 : 0;
  const Cut way = cut(p.l, backward ? p.l + p.before : p.l, p.taps);
  p.block = way.block;
  if (way.points)
    p.transform = p.storage == Storage::float64 ? transform_of<double>(way.points) : transform_of<float>(way.points);
}

// Units summed in one go: few enough that 32 tasks are left, where there are so many. The sizes alone decide it.
void set_groups(LongConvolutionBackward& p) {
  const int64_t units = p.b * ((p.l + p.before + p.longest() - 1) / p.longest());
  const int64_t together = std::clamp<int64_t>(units * vectors(p) / 32, 1, 16);
  p.groups = (units + together - 1) / together;
}

// How many numbers the kernels, side by side or transformed, and the parts of their gradient take.
std::tuple<int64_t, int64_t> memory(int storage, const Sizes& sizes, bool state, bool backward) {
  LongConvolutionBackward p{};
  set_sizes(p, storage, sizes, state, backward);
  set_groups(p);
  const int64_t each = vectors(p) * p.c * p.width() * lanes_here(p.storage);
  return {each, backward ? p.groups * each : 0};
}

void set_inputs(LongConvolution& p, int storage, int threads, const Sizes& sizes, bool backward, const Strided& u,
                Address K, Address state, Address kernels, bool has_state) {
  set_sizes(p, storage, sizes, has_state, backward);
  p.threads = threads;
  p.u = rows(u), p.K = pointer(K), p.state = pointer(state), p.kernels = pointer(kernels);
}

void forward(int storage, int threads, const Sizes& sizes, bool has_state, const Strided& u, Address K, Address state,
             const Strided& y, Address kernels) {
  LongConvolution p{};
  set_inputs(p, storage, threads, sizes, false, u, K, state, kernels, has_state);
  p.y = rows(y);
  nb::gil_scoped_release release;
  ADDER_PICK(long_convolution)(p);
}

void backward(int storage, int threads, const Sizes& sizes, bool has_state, const Strided& u, Address K, Address state,
              const Strided& dy, const Strided& du, Address dK, Address dstate, Address kernels, Address parts) {
  LongConvolutionBackward p{};
  set_inputs(p, storage, threads, sizes, true, u, K, state, kernels, has_state);
  set_groups(p);
  p.dy = rows(dy), p.du = rows(du), p.dK = pointer(dK), p.dstate = pointer(dstate), p.parts = pointer(parts);
  nb::gil_scoped_release release;
  ADDER_PICK(long_convolution_backward)(p);
}

}  // namespace

void bind_long_convolution(nb::module_& m) {
  m.def("long_convolution", &forward);
  m.def("long_convolution_backward", &backward);
  m.def("long_convolution_memory", &memory);
  m.attr("long_convolution_most_taps") = most_taps;
}

}  // namespace adder
