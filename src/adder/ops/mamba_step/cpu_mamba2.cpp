// A Mamba-2 block: three phases.
#include "cpu_stack.hpp"
#include "state_space_dual/cpu_step.hpp"

namespace adder::ADDER_ISA {
namespace {

struct Mamba2Shared {
  float *residual, *z, *mixed, *dt, *y;  // (b, d_model), (b, d), (b, d + 2 g n): x, B, C; (b, h), (b, d)

  Mamba2Shared(Arena& arena, const Mamba2Step& p) {
    residual = arena.take<float>(p.b * p.d_model);
    for (float** each : {&z, &y}) *each = arena.take<float>(p.b * p.d);
    mixed = arena.take<float>(p.b * p.mixed()), dt = arena.take<float>(p.b * p.h);
  }
};

template <class T>
class Mamba2Stack : Stack<T, Mamba2Step, Mamba2Shared> {
  using Base = Stack<T, Mamba2Step, Mamba2Shared>;
  using typename Base::Block;
  using typename Base::Workspace;
  using Base::p_;
  using Base::shared_;

 public:
  explicit Mamba2Stack(const Mamba2Step& p) : Base(p, p.d + 2 * lanes<float>) {}

  void run() {
    const int64_t rows = ceil_div(p_.mixed(), channel_block) + ceil_div(p_.d, channel_block) + ceil_div(p_.h, channel_block);
    this->run_phases({rows, p_.h, ceil_div(p_.d_model, row_block)}, p_.depth * p_.d * p_.d_model * 3,
                     [&](int64_t phase, int64_t layer, int64_t which, int64_t task) {
      switch (which) {
        case 0: return project(phase, layer, task);
        case 1: return scan(layer, task);
        case 2: return this->project_back(p_.blocks[layer], gated(phase, p_.blocks[layer]), task);
      }
    });
  }

 private:
  // The rows of in_proj are those of z, of x B C, which are convolved, and of dt. A task has some of one kind.
  void project(int64_t phase, int64_t layer, int64_t task) {
    const Block& block = p_.blocks[layer];
    const Workspace work = this->normed(phase, block.in_proj, block.norm);
    const int64_t mixed = ceil_div(p_.mixed(), channel_block), gates = ceil_div(p_.d, channel_block);
    if (task < mixed) {
      const int64_t c0 = task * channel_block, wide = smaller(channel_block, p_.mixed() - c0);
      this->product(block.in_proj, block.in_bias, p_.d + c0, p_.d + c0 + wide, work.all, work.first);
      this->convolve(block, layer, p_.mixed(), c0, wide, work.first, shared_.mixed);
    } else if (task < mixed + gates) {
      project_plain(block, work, 0, p_.d, task - mixed, shared_.z);
    } else {
      project_plain(block, work, p_.d + p_.mixed(), p_.h, task - mixed - gates, shared_.dt);
    }
  }

  // Rows of in_proj from `first` on, the task's share of `width`, to (b, width).
  void project_plain(const Block& block, const Workspace& work, int64_t first, int64_t width, int64_t task, float* to) {
    const int64_t c0 = task * channel_block, wide = smaller(channel_block, width - c0);
    this->product(block.in_proj, block.in_bias, first + c0, first + c0 + wide, work.all, work.first);
    for (int64_t m = 0; m < p_.b; ++m) std::memcpy(to + m * width + c0, work.first + m * wide, wide * sizeof(float));
  }

  static float parameter(const void* from, int64_t i) { return scalar(static_cast<const T*>(from)[i]); }

  // One head of every stream; y is gated here unless it is normalised first.
  void scan(int64_t layer, int64_t head) {
    const Block& block = p_.blocks[layer];
    const int64_t p = p_.p(), n = p_.n, group = head / (p_.h / p_.g), room = round_up(p, lanes<float>);
    float *dtx = static_cast<float*>(scratch(2 * room * sizeof(float))), *out = dtx + room;
    const float A2 = exp<float>(splat(parameter(block.A_log, head)))[0] * -1.44269504f;
    for (int64_t m = 0; m < p_.b; ++m) {
      const float *x = shared_.mixed + m * p_.mixed() + head * p, *B = shared_.mixed + m * p_.mixed() + p_.d + group * n;
      const int64_t at = m * p_.d + head * p, state = (m * p_.h + head) * p * n;
      Vec<float> step = softplus<float>(splat(shared_.dt[m * p_.h + head] + parameter(block.dt_bias, head)));
      step = minimum<float>(maximum<float>(step, splat(float(block.dt_min))), splat(float(block.dt_max)));
      for_vectors<float>(p, [&](int64_t c, auto count) { store(dtx + c, load(x + c, count) * step); });
      step_head(reinterpret_cast<const float*>(p_.states[2 * layer + 1]) + state, exp2<float>(step * A2)[0], dtx, B,
                B + p_.g * n, p, n, reinterpret_cast<float*>(p_.after[2 * layer + 1]) + state, out);
      for_vectors<float>(p, [&](int64_t c, auto count) {
        const T* D = static_cast<const T*>(block.D);
        Vec<float> y = load(out + c);
        y += load(x + c, count) * (block.skip_by_channel ? load(D + head * p + c, count) : splat(scalar(D[head])));
        if (!(block.gate_norm && block.norm_before_gate)) y *= gate(load(shared_.z + at + c, count));
        store(shared_.y + at + c, y, count);
      });
    }
  }

  static Vec<float> gate(Vec<float> z) { return z * logistic<float>(z); }

  // The vectors that out_proj multiplies: y as it is, or each group of its channels normalised.
  Workspace gated(int64_t phase, const Block& block) {
    if (!block.gate_norm) return this->rows_of(phase, block.out_proj, shared_.y, p_.d);
    return this->workspace(phase, block.out_proj, [&](Workspace& work) {
      const int64_t wide = p_.d / p_.g;
      for (int64_t m = 0; m < p_.b; ++m) {
        for (int64_t first = 0; first < p_.d; first += wide) {
          const float *y = shared_.y + m * p_.d + first, *z = shared_.z + m * p_.d + first;
          const float scale = this->inverse_root_mean_square(y, wide, block.gate_eps);
          for_vectors<float>(wide, [&](int64_t c, auto count) {
            Vec<float> out = load(y + c, count) * scale * load(static_cast<const T*>(block.gate_norm) + first + c, count);
            if (block.norm_before_gate) out *= gate(load(z + c, count));
            store(work.row + first + c, out, count);
          });
        }
        prepare(work.all, m, work.row);
      }
    });
  }
};

}  // namespace

void mamba2_step(const Mamba2Step& p) {
  p.storage == Storage::bfloat16 ? Mamba2Stack<bfloat16>(p).run() : Mamba2Stack<float>(p).run();
}

}  // namespace adder::ADDER_ISA
