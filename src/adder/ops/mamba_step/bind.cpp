#include <nanobind/stl/vector.h>

#include "binding.hpp"
#include "mamba_step/cpu.hpp"

namespace adder {
namespace {

// A block as weights.py lists it: its matrices, its other tensors, and numbers that are no tensors.
using Block = std::tuple<std::vector<MatrixTuple>, std::vector<Address>, std::vector<double>>;

template <size_t count>
void point(const void** const (&into)[count], const std::vector<Address>& small) {
  for (size_t i = 0; i < count; ++i) *into[i] = pointer(small.at(i));
}

MambaStep::Block block_of(const MambaStep&, const Block& from) {
  const auto& [matrices, small, options] = from;
  MambaStep::Block to{};
  to.in_proj = matrix(matrices.at(0)), to.x_proj = matrix(matrices.at(1)), to.dt_proj = matrix(matrices.at(2));
  to.out_proj = matrix(matrices.at(3));
  point({&to.norm, &to.in_bias, &to.out_bias, &to.conv_weight, &to.conv_bias, &to.dt_bias, &to.A_log, &to.D}, small);
  return to;
}

Mamba2Step::Block block_of(const Mamba2Step&, const Block& from) {
  const auto& [matrices, small, options] = from;
  Mamba2Step::Block to{};
  to.in_proj = matrix(matrices.at(0)), to.out_proj = matrix(matrices.at(1));
  point({&to.norm, &to.in_bias, &to.out_bias, &to.conv_weight, &to.conv_bias, &to.dt_bias, &to.A_log, &to.D, &to.gate_norm},
        small);
  to.gate_eps = options.at(0), to.dt_min = options.at(1), to.dt_max = options.at(2);
  to.norm_before_gate = options.at(3) != 0, to.skip_by_channel = options.at(4) != 0;
  return to;
}

// The sizes behind those that all blocks have.
void set_sizes(MambaStep& step, const std::vector<int64_t>& more) { step.rank = more.at(0); }
void set_sizes(Mamba2Step& step, const std::vector<int64_t>& more) { step.h = more.at(0), step.g = more.at(1); }

void run_kernel(const MambaStep& step) { ADDER_PICK(mamba_step)(step); }
void run_kernel(const Mamba2Step& step) { ADDER_PICK(mamba2_step)(step); }

// The parameters of a stack, by address: whoever makes one keeps the tensors alive.
template <class Step>
struct Stack {
  Step step{};
  std::vector<typename Step::Block> blocks;

  // sizes: d_model, d, n, k, rows of the head that are asked for, and what only this kind of block has
  Stack(int storage, const std::vector<int64_t>& sizes, double eps, const std::vector<Block>& from,
        const MatrixTuple& embedding, const MatrixTuple& head, Address norm) {
    step.storage = static_cast<Storage>(storage);
    step.d_model = sizes.at(0), step.d = sizes.at(1), step.n = sizes.at(2), step.k = sizes.at(3);
    step.vocabulary = sizes.at(4);
    set_sizes(step, {sizes.begin() + 5, sizes.end()});
    step.eps = eps;
    for (const Block& each : from) blocks.push_back(block_of(step, each));
    step.embedding = matrix(embedding), step.head = matrix(head), step.norm = pointer(norm);
    step.depth = static_cast<int64_t>(blocks.size());
  }

  void run(int threads, int64_t b, Address ids, const std::vector<Address>& states, const std::vector<Address>& after,
           Address logits) const {
    if (states.size() != 2 * blocks.size() || after.size() != states.size()) throw std::invalid_argument("mamba_step: two states for each block");
    Step call = step;
    call.threads = threads, call.b = b, call.blocks = blocks.data(), call.states = states.data(), call.after = after.data();
    call.ids = pointer<const int64_t>(ids), call.logits = pointer(logits);
    nb::gil_scoped_release release;
    run_kernel(call);
  }
};

template <class Step>
void bind_stack(nb::module_& m, const char* name) {
  nb::class_<Stack<Step>>(m, name)
      .def(nb::init<int, const std::vector<int64_t>&, double, const std::vector<Block>&, const MatrixTuple&,
                    const MatrixTuple&, Address>())
      .def("run", &Stack<Step>::run);
}

}  // namespace

void bind_mamba_step(nb::module_& m) {
  bind_stack<MambaStep>(m, "MambaStack");
  bind_stack<Mamba2Step>(m, "Mamba2Stack");
}

}  // namespace adder
