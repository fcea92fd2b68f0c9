// A stack of blocks and its head, one token of every stream in one call. A block is a few phases: each ends where numbers of
// all channels are needed. In between, a task keeps what it makes in its own cache. Activations are float throughout.
#pragma once
#include <atomic>
#include <memory>

#include "math.hpp"
#include "mamba_step/cpu.hpp"
#include "matvec.hpp"

namespace adder::ADDER_ISA {

constexpr int64_t channel_block = 64, row_block = 32, head_block = 256;

// A row of the embedding, as float.
template <class T>
inline void dense_row(const Matrix& w, int64_t row, float* to) {
  const T* from = static_cast<const T*>(w.data) + row * w.columns;
  for (int64_t c = 0; c < w.columns; ++c) to[c] = scalar(from[c]);
}
template <bool four>
inline void quantized_row(const Matrix& w, int64_t row, float* to) {
  const int64_t groups = ceil_div(w.columns, group_columns), tile = row / tile_rows, i = row % tile_rows;
  for (int64_t c = 0; c < w.columns; ++c) {
    const int64_t g = tile * groups + c / group_columns, at = c % group_columns, column = four ? at % 16 : at;
    const uint8_t byte = static_cast<const uint8_t*>(
        w.data)[g * group_bytes<four> + column / 4 * 64 + i * 4 + column % 4];
    const int code = four ? ((byte >> (at < 16 ? 0 : 4)) & 15) - 8 : byte - 128;
    to[c] = scalar(static_cast<const bfloat16*>(w.scales)[g * tile_rows + i]) * float(code);
  }
}
inline void embed(const Matrix& w, int64_t row, float* to) {
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
inline thread_local Filled filled;
inline std::atomic<int64_t> calls{0};

// What the blocks of every kind are stepped with. Call is what a kernel is told, Shared what the tasks of one phase leave for
// those of the next, made of an arena and a Call; `residual` (b, d_model) is part of it. T is the storage.
template <class T, class Call, class Shared>
class Stack {
 protected:
  using Block = typename Call::Block;

  // `row`: numbers that one task needs for itself.
  Stack(const Call& p, int64_t row)
      : p_(p), row_(row > p.d_model ? row : p.d_model), call_(++calls), memory_(bytes_of(p)), arena_{memory_.data}, shared_(arena_, p) {}

  // block(phase, layer, which, task) runs a task of one of a block's phases, which have so many tasks each.
  template <class F>
  void run_phases(std::initializer_list<int64_t> tasks_of_block, int64_t work, F&& block) {
    const int64_t of_block = static_cast<int64_t>(tasks_of_block.size());
    std::unique_ptr<int64_t[]> tasks(new int64_t[of_block * p_.depth + 2]);
    int64_t phases = 0;
    tasks[phases++] = p_.b;
    for (int64_t layer = 0; layer < p_.depth; ++layer)
      for (int64_t each : tasks_of_block) tasks[phases++] = each;
    tasks[phases++] = ceil_div(p_.vocabulary, head_block);
    auto body = [&](int64_t phase, int64_t task) {
      if (phase == 0) return embed(p_.embedding, p_.ids[task], shared_.residual + task * p_.d_model);
      if (phase == phases - 1) return head(phase, task);
      block(phase, (phase - 1) / of_block, (phase - 1) % of_block, task);
    };
    parallel_phases(tasks.get(), phases, worth(p_.threads, work + p_.vocabulary * p_.d_model), body);
  }

  // What a task works in: the vectors that all tasks of a phase multiply with, and room for what it makes of them.
  struct Workspace {
    Activations all;
    float *first, *second, *row;  // (b, head_block), (b, channel_block); what the constructor was told

    Workspace(Arena& arena, const Call& p, int64_t size, const Matrix& weight) : all(arena, weight, p.b) {
      first = arena.take<float>(p.b * head_block), second = arena.take<float>(p.b * channel_block);
      row = arena.take<float>(size);
    }
  };

  // A thread brings the vectors to their form once in a phase; `fill` does it.
  template <class F>
  Workspace workspace(int64_t phase, const Matrix& weight, F&& fill) {
    Arena sizes{nullptr};
    Workspace(sizes, p_, row_, weight);
    Arena arena{static_cast<char*>(scratch(sizes.used))};
    Workspace work(arena, p_, row_, weight);
    if (filled.call != call_ || filled.phase != phase) fill(work);
    filled = {call_, phase};
    return work;
  }

  Workspace normed(int64_t phase, const Matrix& weight, const void* norm) {
    return workspace(phase, weight, [&](Workspace& work) {
      for (int64_t m = 0; m < p_.b; ++m) {
        const float* x = shared_.residual + m * p_.d_model;
        const float scale = inverse_root_mean_square(x, p_.d_model, p_.eps);
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

  static float inverse_root_mean_square(const float* x, int64_t width, double eps) {
    Vec<float> squares = {};
    for_vectors<float>(width, [&](int64_t c, auto n) {
      const Vec<float> value = load(x + c, n);
      squares += value * value;
    });
    return 1 / __builtin_sqrtf(sum<float>(squares) / float(width) + float(eps));
  }

  // Channels c0 .. c0 + wide - 1 of `channels` go through the convolution and silu: x (b, wide) to `to` (b, channels).
  void convolve(const Block& block, int64_t layer, int64_t channels, int64_t c0, int64_t wide, const float* x, float* to) {
    const int64_t kept = p_.k - 1;
    for (int64_t m = 0; m < p_.b; ++m) {
      const float* now = x + m * wide;
      const T* before = reinterpret_cast<const T*>(p_.states[2 * layer]) + m * kept * channels + c0;
      T* after = reinterpret_cast<T*>(p_.after[2 * layer]) + m * kept * channels + c0;
      convolve_one(block, channels, c0, wide, before, now, to + m * channels + c0);
      for (int64_t j = 0; j + 1 < kept; ++j) std::memcpy(after + j * channels, before + (j + 1) * channels, wide * sizeof(T));
      if (kept > 0)
        for_vectors<float>(wide, [&](int64_t c, auto n) { store(after + (kept - 1) * channels + c, load(now + c, n), n); });
    }
  }

  // residual += out_proj(y), for row_block rows; `work` holds y.
  void project_back(const Block& block, const Workspace& work, int64_t task) {
    const int64_t r0 = task * row_block, r1 = smaller(r0 + row_block, p_.d_model), wide = r1 - r0;
    product(block.out_proj, block.out_bias, r0, r1, work.all, work.first);
    for (int64_t m = 0; m < p_.b; ++m)
      for_vectors<float>(wide, [&](int64_t r, auto n) {
        float* at = shared_.residual + m * p_.d_model + r0 + r;
        store(at, load(at, n) + load(work.first + m * wide + r, n), n);
      });
  }

 private:
  static int64_t bytes_of(const Call& p) {
    Arena sizes{nullptr};
    Shared(sizes, p);
    return sizes.used;
  }

  // to = silu(bias + sum over the taps, the last of them x)
  void convolve_one(const Block& block, int64_t channels, int64_t c0, int64_t wide, const T* before, const float* x, float* to) {
    const T* weight = static_cast<const T*>(block.conv_weight) + c0 * p_.k;
    float total[channel_block];
    for (int64_t c = 0; c < wide; ++c) {
      float each = block.conv_bias ? scalar(static_cast<const T*>(block.conv_bias)[c0 + c]) : 0;
      for (int64_t j = 0; j + 1 < p_.k; ++j) each += scalar(weight[c * p_.k + j]) * scalar(before[j * channels + c]);
      total[c] = each + scalar(weight[c * p_.k + p_.k - 1]) * x[c];
    }
    for_vectors<float>(wide, [&](int64_t c, auto n) {
      const Vec<float> value = load(total + c, n);
      store(to + c, value * logistic<float>(value), n);
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

 protected:
  const Call& p_;
  const int64_t row_, call_;
  const Memory memory_;
  Arena arena_;
  const Shared shared_;
};

}  // namespace adder::ADDER_ISA
