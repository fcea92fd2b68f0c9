#include <nanobind/stl/vector.h>

#include "binding.hpp"
#include "mamba_step/cpu.hpp"

namespace adder {
namespace {

using Block = std::tuple<MatrixTuple, MatrixTuple, MatrixTuple, MatrixTuple, std::vector<Address>>;

// The parameters of a stack, by address: whoever makes one keeps the tensors alive.
struct MambaStack {
  MambaStep step{};
  std::vector<StepBlock> blocks;

  MambaStack(int storage, const std::vector<int64_t>& sizes, double eps, const std::vector<Block>& from,
             const MatrixTuple& embedding, const MatrixTuple& head, Address norm) {
    step.storage = static_cast<Storage>(storage);
    step.d_model = sizes.at(0), step.d = sizes.at(1), step.n = sizes.at(2), step.k = sizes.at(3);
    step.rank = sizes.at(4), step.vocabulary = sizes.at(5);
    step.eps = eps;
    for (const auto& [in, x, dt, out, small] : from) {
      StepBlock block{};
      block.in_proj = matrix(in), block.x_proj = matrix(x), block.dt_proj = matrix(dt), block.out_proj = matrix(out);
      const void** const into[] = {&block.norm,      &block.in_bias, &block.out_bias, &block.conv_weight,
                                   &block.conv_bias, &block.dt_bias, &block.A_log,    &block.D};
      for (size_t i = 0; i < std::size(into); ++i) *into[i] = pointer(small.at(i));
      blocks.push_back(block);
    }
    step.embedding = matrix(embedding), step.head = matrix(head), step.norm = pointer(norm);
    step.depth = static_cast<int64_t>(blocks.size());
  }

  void run(int threads, int64_t b, Address ids, const std::vector<Address>& states, const std::vector<Address>& after,
           Address logits) const {
    if (states.size() != 2 * blocks.size() || after.size() != states.size()) throw std::invalid_argument("mamba_step: two states for each block");
    MambaStep p = step;
    p.threads = threads, p.b = b, p.blocks = blocks.data(), p.states = states.data(), p.after = after.data();
    p.ids = pointer<const int64_t>(ids), p.logits = pointer(logits);
    nb::gil_scoped_release release;
    ADDER_PICK(mamba_step)(p);
  }
};

}  // namespace

void bind_mamba_step(nb::module_& m) {
  nb::class_<MambaStack>(m, "MambaStack")
      .def(nb::init<int, const std::vector<int64_t>&, double, const std::vector<Block>&, const MatrixTuple&,
                    const MatrixTuple&, Address>())
      .def("run", &MambaStack::run);
}

}  // namespace adder
