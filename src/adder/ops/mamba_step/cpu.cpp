// One token of every stream through the whole stack, in one call. A block is four phases: each ends where numbers of all
// channels are needed. In between, a task keeps what it makes in its own cache: projection, convolution and gate of its
// channels; step size, scan and gate of its channels. Activations are float throughout.
#include "mamba_step/cpu.hpp"

#include <atomic>
#include <memory>

#include "math.hpp"
#include "matvec.hpp"

namespace adder::ADDER_ISA {
namespace {

constexpr int64_t channel_block = 64, row_block = 32, head_block = 256;
constexpr int64_t phases_of_block = 4;

// What the tasks of one phase leave for those of the next.
struct Shared {
  float *residual, *x, *z, *selected, *y;  // (b, d_model), (b, d), (b, d), (b, rank + 2 n), (b, d)

  Shared(Arena& arena, const MambaStep& p) {
    residual = arena.take<float>(p.b * p.d_model);
    for (float** each : {&x, &z, &y}) *each = arena.take<float>(p.b * p.d);
    selected = arena.take<float>(p.b * (p.rank + 2 * p.n));
  }
};

// A row of the embedding, as float.
template <class T>
void dense_row(const Matrix& w, int64_t row, float* to) {
  const T* from = static_cast<const T*>(w.data) + row * w.columns;
  for (int64_t c = 0; c < w.columns; ++c) to[c] = scalar(from[c]);
}
template <bool four>
void quantized_row(const Matrix& w, int64_t row, float* to) {
  const int64_t groups = ceil_div(w.columns, group_columns), tile = row / tile_rows, i = row % tile_rows;
  for (int64_t c = 0; c < w.columns; ++c) {
    const int64_t g = tile * groups + c / group_columns, at = c % group_columns, column = four ? at % 16 : at;
    const uint8_t byte = static_cast<const uint8_t*>(
        w.data)[g * group_bytes<four> + column / 4 * 64 + i * 4 + column % 4];
    const int code = four ? ((byte >> (at < 16 ? 0 : 4)) & 15) - 8 : byte - 128;
    to[c] = scalar(static_cast<const bfloat16*>(w.scales)[g * tile_rows + i]) * float(code);
  }
}
void embed(const Matrix& w, int64_t row, float* to) {
  switch (w.kind) {
    case Weights::float32: return dense_row<float>(w, row, to);
    case Weights::bfloat16: return dense_row<bfloat16>(w, row, to);
    case Weights::int8: return quantized_row<false>(w, row, to);
    case Weights::int4: return quantized_row<true>(w, row, to);
  }
}

// Which vectors the calling thread's workspace holds.
struct Filled {
  int64_t call = 0, phase = 0;
};
thread_local Filled filled;
std::atomic<int64_t> calls{0};

template <class T>
class Step {
 public:
  explicit Step(const MambaStep& p)
      : p_(p), selected_width_(p.rank + 2 * p.n), call_(++calls), memory_(bytes_of(p)), arena_{memory_.data}, shared_(arena_, p) {}

  void run() {
    std::unique_ptr<int64_t[]> tasks(new int64_t[phases_of_block * p_.depth + 2]);
    int64_t phases = 0;
    tasks[phases++] = p_.b;
    for (int64_t layer = 0; layer < p_.depth; ++layer)
      for (int64_t rows : {ceil_div(p_.d, channel_block), ceil_div(selected_width_, tile_rows),
                           ceil_div(p_.d, channel_block), ceil_div(p_.d_model, row_block)})
        tasks[phases++] = rows;
    tasks[phases++] = ceil_div(p_.vocabulary, head_block);
    auto body = [&](int64_t phase, int64_t task) {
      if (phase == 0) return embed(p_.embedding, p_.ids[task], shared_.residual + task * p_.d_model);
      if (phase == phases - 1) return head(phase, task);
      const int64_t layer = (phase - 1) / phases_of_block;
      switch ((phase - 1) % phases_of_block) {
        case 0: return project_and_convolve(phase, layer, task);
        case 1: return select(phase, layer, task);
        case 2: return scan(phase, layer, task);
        case 3: return project_back(phase, layer, task);
      }
    };
    const int64_t work = p_.depth * p_.d * p_.d_model * 3 + p_.vocabulary * p_.d_model;
    parallel_phases(tasks.get(), phases, worth(p_.threads, work), body);
  }

 private:
  static int64_t bytes_of(const MambaStep& p) {
    Arena sizes{nullptr};
    Shared(sizes, p);
    return sizes.used;
  }

  // What a task works in: the vectors that all tasks of a phase multiply with, and room for what it makes of them.
  struct Workspace {
    Activations all;
    float *first, *second, *row;  // (b, channel_block or head_block), twice; (d_model) or (lanes, n)

    Workspace(Arena& arena, const MambaStep& p, const Matrix& weight) : all(arena, weight, p.b) {
      first = arena.take<float>(p.b * head_block), second = arena.take<float>(p.b * channel_block);
      row = arena.take<float>(p.d_model > lanes<float> * p.n ? p.d_model : lanes<float> * p.n);
    }
  };

  // A thread brings the vectors to their form once in a phase; `fill` does it.
  template <class F>
  Workspace workspace(int64_t phase, const Matrix& weight, F&& fill) {
    Arena sizes{nullptr};
    Workspace(sizes, p_, weight);
    Arena arena{static_cast<char*>(scratch(sizes.used))};
    Workspace work(arena, p_, weight);
    if (filled.call != call_ || filled.phase != phase) fill(work);
    filled = {call_, phase};
    return work;
  }

  Workspace normed(int64_t phase, const Matrix& weight, const void* norm) {
    return workspace(phase, weight, [&](Workspace& work) {
      for (int64_t m = 0; m < p_.b; ++m) {
        const float* x = shared_.residual + m * p_.d_model;
        Vec<float> squares = {};
        for_vectors<float>(p_.d_model, [&](int64_t c, auto n) {
          const Vec<float> value = load(x + c, n);
          squares += value * value;
        });
        const float scale = 1 / __builtin_sqrtf(sum<float>(squares) / float(p_.d_model) + float(p_.eps));
        for_vectors<float>(p_.d_model, [&](int64_t c, auto n) {
          store(work.row + c, load(x + c, n) * scale * load(static_cast<const T*>(norm) + c, n), n);
        });
        prepare(work.all, m, work.row);
      }
    });
  }

  Workspace rows_of(int64_t phase, const Matrix& weight, const float* from, int64_t row) {
    return workspace(phase, weight, [&](Workspace& work) {
      for (int64_t m = 0; m < p_.b; ++m) prepare(work.all, m, from + m * row);
    });
  }

  // Rows first .. last - 1 of a product, with their bias, to (b, last - first).
  void product(const Matrix& weight, const void* bias, int64_t first, int64_t last, const Activations& all, float* y) {
    multiply_rows(weight, first, last, all, y, last - first);
    if (bias)
      for (int64_t m = 0; m < p_.b; ++m)
        for_vectors<float>(last - first, [&](int64_t r, auto n) {
          float* at = y + m * (last - first) + r;
          store(at, load(at, n) + load(static_cast<const T*>(bias) + first + r, n), n);
        });
  }

  void project_and_convolve(int64_t phase, int64_t layer, int64_t task) {
    const StepBlock& block = p_.blocks[layer];
    const int64_t c0 = task * channel_block, c1 = smaller(c0 + channel_block, p_.d), wide = c1 - c0, kept = p_.k - 1;
    const Workspace work = normed(phase, block.in_proj, block.norm);
    product(block.in_proj, block.in_bias, c0, c1, work.all, work.first);
    product(block.in_proj, block.in_bias, p_.d + c0, p_.d + c1, work.all, work.second);
    for (int64_t m = 0; m < p_.b; ++m) {
      const float* x = work.first + m * wide;
      std::memcpy(shared_.z + m * p_.d + c0, work.second + m * wide, wide * sizeof(float));
      const T* before = reinterpret_cast<const T*>(p_.states[2 * layer]) + m * kept * p_.d + c0;
      T* after = reinterpret_cast<T*>(p_.after[2 * layer]) + m * kept * p_.d + c0;
      convolve(block, c0, wide, before, x, shared_.x + m * p_.d + c0);
      for (int64_t j = 0; j + 1 < kept; ++j) std::memcpy(after + j * p_.d, before + (j + 1) * p_.d, wide * sizeof(T));
      if (kept > 0)
        for_vectors<float>(wide, [&](int64_t c, auto n) { store(after + (kept - 1) * p_.d + c, load(x + c, n), n); });
    }
  }

  // to = silu(bias + sum over the taps, the last of them x)
  void convolve(const StepBlock& block, int64_t c0, int64_t wide, const T* before, const float* x, float* to) {
    const T* weight = static_cast<const T*>(block.conv_weight) + c0 * p_.k;
    float total[channel_block];
    for (int64_t c = 0; c < wide; ++c) {
      float each = block.conv_bias ? scalar(static_cast<const T*>(block.conv_bias)[c0 + c]) : 0;
      for (int64_t j = 0; j + 1 < p_.k; ++j) each += scalar(weight[c * p_.k + j]) * scalar(before[j * p_.d + c]);
      total[c] = each + scalar(weight[c * p_.k + p_.k - 1]) * x[c];
    }
    for_vectors<float>(wide, [&](int64_t c, auto n) {
      const Vec<float> value = load(total + c, n);
      store(to + c, value * logistic<float>(value), n);
    });
  }

  void select(int64_t phase, int64_t layer, int64_t task) {
    const Matrix& weight = p_.blocks[layer].x_proj;
    const int64_t r0 = task * tile_rows, r1 = smaller(r0 + tile_rows, selected_width_);
    multiply_rows(weight, r0, r1, rows_of(phase, weight, shared_.x, p_.d).all,
                  shared_.selected + r0, selected_width_);
  }

  void scan(int64_t phase, int64_t layer, int64_t task) {
    const StepBlock& block = p_.blocks[layer];
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

  void project_back(int64_t phase, int64_t layer, int64_t task) {
    const StepBlock& block = p_.blocks[layer];
    const int64_t r0 = task * row_block, r1 = smaller(r0 + row_block, p_.d_model), wide = r1 - r0;
    const Workspace work = rows_of(phase, block.out_proj, shared_.y, p_.d);
    product(block.out_proj, block.out_bias, r0, r1, work.all, work.first);
    for (int64_t m = 0; m < p_.b; ++m)
      for_vectors<float>(wide, [&](int64_t r, auto n) {
        float* at = shared_.residual + m * p_.d_model + r0 + r;
        store(at, load(at, n) + load(work.first + m * wide + r, n), n);
      });
  }

  void head(int64_t phase, int64_t task) {
    const int64_t r0 = task * head_block, r1 = smaller(r0 + head_block, p_.vocabulary), wide = r1 - r0;
    const Workspace work = normed(phase, p_.head, p_.norm);
    multiply_rows(p_.head, r0, r1, work.all, work.first, wide);
    for (int64_t m = 0; m < p_.b; ++m)
      for_vectors<float>(wide, [&](int64_t r, auto n) {
        store(static_cast<T*>(p_.logits) + m * p_.vocabulary + r0 + r, load(work.first + m * wide + r, n), n);
      });
  }

  const MambaStep& p_;
  const int64_t selected_width_, call_;
  const Memory memory_;
  Arena arena_;
  const Shared shared_;
};

}  // namespace

void mamba_step(const MambaStep& p) {
  p.storage == Storage::bfloat16 ? Step<bfloat16>(p).run() : Step<float>(p).run();
}

}  // namespace adder::ADDER_ISA
