// A Mamba block: four phases.
#include "cpu_stack.hpp"

namespace adder::ADDER_ISA {
namespace {

struct MambaShared {
  float *residual, *x, *z, *selected, *y;  // (b, d_model), (b, d) twice, (b, rank + 2 n), (b, d)

  MambaShared(Arena& arena, const MambaStep& p) {
    residual = arena.take<float>(p.b * p.d_model);
    for (float** each : {&x, &z, &y}) *each = arena.take<float>(p.b * p.d);
    selected = arena.take<float>(p.b * (p.rank + 2 * p.n));
  }
};

template <class T>
class MambaStack : Stack<T, MambaStep, MambaShared> {
  using Base = Stack<T, MambaStep, MambaShared>;
  using typename Base::Block;
  using typename Base::Workspace;
  using Base::p_;
  using Base::product;
  using Base::rows_of;
  using Base::shared_;

 public:
  explicit MambaStack(const MambaStep& p) : Base(p, lanes<float> * p.n), selected_width_(p.rank + 2 * p.n) {}

  void run() {
    const int64_t channels = ceil_div(p_.d, channel_block);
    this->run_phases({channels, ceil_div(selected_width_, tile_rows), channels, ceil_div(p_.d_model, row_block)},
                     p_.depth * p_.d * p_.d_model * 3, [&](int64_t phase, int64_t layer, int64_t which, int64_t task) {
      switch (which) {
        case 0: return project_and_convolve(phase, layer, task);
        case 1: return select(phase, layer, task);
        case 2: return scan(phase, layer, task);
        case 3: {
          const Block& block = p_.blocks[layer];
          return this->project_back(block, rows_of(phase, block.out_proj, shared_.y, p_.d), task);
        }
      }
    });
  }

 private:
  void project_and_convolve(int64_t phase, int64_t layer, int64_t task) {
    const Block& block = p_.blocks[layer];
    const int64_t c0 = task * channel_block, c1 = smaller(c0 + channel_block, p_.d), wide = c1 - c0;
    const Workspace work = this->normed(phase, block.in_proj, block.norm);
    product(block.in_proj, block.in_bias, c0, c1, work.all, work.first);
    product(block.in_proj, block.in_bias, p_.d + c0, p_.d + c1, work.all, work.second);
    for (int64_t m = 0; m < p_.b; ++m)
      std::memcpy(shared_.z + m * p_.d + c0, work.second + m * wide, wide * sizeof(float));
    this->convolve(block, layer, p_.d, c0, wide, work.first, shared_.x);
  }

  void select(int64_t phase, int64_t layer, int64_t task) {
    const Matrix& weight = p_.blocks[layer].x_proj;
    const int64_t r0 = task * tile_rows, r1 = smaller(r0 + tile_rows, selected_width_);
    multiply_rows(weight, r0, r1, rows_of(phase, weight, shared_.x, p_.d).all,
                  shared_.selected + r0, selected_width_);
  }

  void scan(int64_t phase, int64_t layer, int64_t task) {
    const Block& block = p_.blocks[layer];
    const int64_t c0 = task * channel_block, c1 = smaller(c0 + channel_block, p_.d), wide = c1 - c0;
    const Workspace work = rows_of(phase, block.dt_proj, shared_.selected, selected_width_);
    product(block.dt_proj, block.dt_bias, c0, c1, work.all, work.first);
    for (int64_t c = 0; c < wide; c += lanes<float>) {
      const int count = static_cast<int>(smaller(lanes<float>, wide - c));
      const T* A_log = static_cast<const T*>(block.A_log) + (c0 + c) * p_.n;
      for_vectors<float>(count * p_.n, [&](int64_t i, auto n) {
        store(work.row + i, exp<float>(load(A_log + i, n)) * -1.44269504f, n);
      });
      for (int64_t m = 0; m < p_.b; ++m) {
        const int64_t at = m * p_.d + c0 + c;
        const Vec<float> dt = softplus<float>(load(work.first + m * wide + c, count)), x = load(shared_.x + at, count);
        Vec<float> y = scan_channels(layer, m, c0 + c, count, work.row, dt, dt * x);
        y += load(static_cast<const T*>(block.D) + c0 + c, count) * x;
        const Vec<float> z = load(shared_.z + at, count);
        store(shared_.y + at, y * z * logistic<float>(z), count);
      }
    }
  }

  // h = exp(dt A) h + dt x B, and C . h, of `count` channels with their states along the lanes; A2 is A log2(e).
  Vec<float> scan_channels(int64_t layer, int64_t m, int64_t c0, int count, const float* A2, Vec<float> dt, Vec<float> dtx) {
    const int64_t n = p_.n, first = (m * p_.d + c0) * n;
    const float* before = reinterpret_cast<const float*>(p_.states[2 * layer + 1]) + first;
    float* after = reinterpret_cast<float*>(p_.after[2 * layer + 1]) + first;
    const float* B = shared_.selected + m * selected_width_ + p_.rank;
    const float* C = B + n;
    float step[lanes<float>], by_B[lanes<float>], y[lanes<float>];
    store(step, dt), store(by_B, dtx);
    Vec<float> parts[lanes<float>] = {};
    for (int i = 0; i < count; ++i)
      for_vectors<float>(n, [&](int64_t s, auto some) {
        const Vec<float> a = exp2<float>(step[i] * load(A2 + i * n + s, some));
        const Vec<float> h = a * load(before + i * n + s, some) + by_B[i] * load(B + s, some);
        store(after + i * n + s, h, some);
        parts[i] += h * load(C + s, some);
      });
    sums<float>(parts, lanes<float>, y);
    return load(y);
  }

  const int64_t selected_width_;
};

}  // namespace

void mamba_step(const MambaStep& p) {
  p.storage == Storage::bfloat16 ? MambaStack<bfloat16>(p).run() : MambaStack<float>(p).run();
}

}  // namespace adder::ADDER_ISA
