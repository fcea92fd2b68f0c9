// Products with int8 and int4 weights. First every vector is brought to int8; then a task is a block of rows for a block of
// vectors, small enough that both lie in the second cache.
#include "quantized_linear/cpu.hpp"

#include "matvec.hpp"

namespace adder::ADDER_ISA {
namespace {

constexpr int64_t vectors = 64;  // of a task

template <class T>
void run(const QuantizedLinear& p) {
  const int64_t row_block = p.count < vectors ? 16 : 64;
  const int64_t vector_blocks = ceil_div(p.count, vectors), row_blocks = ceil_div(p.weight.rows, row_block);
  Arena sizes{nullptr};
  Activations(sizes, p.weight, p.count);
  const Memory memory(sizes.used);  // as long as the input: not for a thread to keep
  Arena shared{memory.data};
  Activations all(shared, p.weight, p.count);
  auto body = [&](int64_t phase, int64_t task) {
    const int64_t m0 = (phase == 0 ? task : task % vector_blocks) * vectors, m1 = smaller(m0 + vectors, p.count);
    if (phase == 0) {
      for (int64_t m = m0; m < m1; ++m) prepare(all, m, static_cast<const T*>(p.x) + m * p.x_row);
      return;
    }
    const int64_t r0 = task / vector_blocks * row_block, r1 = smaller(r0 + row_block, p.weight.rows);
    float y[vectors * 64];
    multiply_rows(p.weight, r0, r1, all.slice(m0, m1), y, r1 - r0);
    for (int64_t m = m0; m < m1; ++m)
      for_vectors<float>(r1 - r0, [&](int64_t r, auto n) {
        Vec<float> value = load(y + (m - m0) * (r1 - r0) + r, n);
        if (p.bias) value += load(p.bias + r0 + r, n);
        store(static_cast<T*>(p.y) + m * p.weight.rows + r0 + r, value, n);
      });
  };
  const int64_t tasks[] = {vector_blocks, row_blocks * vector_blocks};
  parallel_phases(tasks, 2, worth(p.threads, p.count * p.weight.rows * p.weight.columns / 8), body);
}

}  // namespace

void quantized_linear(const QuantizedLinear& p) {
  p.storage == Storage::bfloat16 ? run<bfloat16>(p) : run<float>(p);
}

}  // namespace adder::ADDER_ISA
