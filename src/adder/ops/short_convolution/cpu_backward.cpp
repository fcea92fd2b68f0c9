// Short convolution, backward: a task is a block of steps and a block of channels of one batch row. From the end, one
// tile of steps at a time, it computes the gradient before the activation, then what each input and weight gets of it.
#include "kernel.hpp"
#include "math.hpp"
#include "short_convolution/cpu.hpp"

namespace adder::ADDER_ISA {
namespace {

constexpr int64_t tile = 32, tile_bytes = 1024;
static_assert(convolution_block % tile == 0);

template <class T>
struct Task {
  using S = arithmetic_t<T>;
  static constexpr int64_t width = tile_bytes / sizeof(S);
  const ShortConvolutionBackward& p;
  int64_t b, first, count;  // channels
  S *before, *dweight, *nothing;  // (tile + k - 1, width), (k + 1, width), (width)
  T* zero;                        // (width)
  const T** taps;                 // (tile, k)
  const S** rows;                 // (k)
  int64_t bytes;

  Task(char* base, const ShortConvolutionBackward& p) : p(p) {
    Arena arena{base};
    before = arena.take<S>((tile + p.k - 1) * width), dweight = arena.take<S>((p.k + 1) * width);
    nothing = arena.take<S>(width), zero = arena.take<T>(width);
    taps = arena.take<const T*>(tile * p.k), rows = arena.take<const S*>(p.k);
    bytes = arena.used;
  }

  void run(int64_t start, int64_t end, S* part);
  void find_taps(int64_t t, const T** to) {
    for (int64_t j = 0; j < p.k; ++j) to[j] = p.input(b, t + j + 1 - p.k, t, first, zero);
  }
  void before_activation(int64_t t, const T* const* from, S* to);
  void input_gradient(int64_t s, int64_t start);
  template <int vectors, int together, class N>
  void weight_gradient(int64_t j, int64_t c, int64_t steps, N n);
  template <int vectors, class N>
  void parameter_gradients(int64_t c, int64_t steps, N n);
  template <int vectors, class N>
  static void add(const Vec<S>* value, S* to, N n) {
    for (int v = 0; v < vectors; ++v) store(to + v * lanes<S>, load(to + v * lanes<S>, n) + value[v], n);
  }
  // Rows lie far apart, and the hardware does not guess the next one.
  void prefetch(const Rows& rows, int64_t t) const {
    if (t < 0) return;
    const T* row = rows.at<const T>(b, t, first);
    for (int64_t c = 0; c < count; c += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + c);
  }
};

// The gradient of bias + sum of taps at step t.
template <class T>
void Task<T>::before_activation(int64_t t, const T* const* from, S* to) {
  const T* dy = p.dy.at<const T>(b, t, first);
  const S* weight = static_cast<const S*>(p.weight) + first;
  const S* bias = p.bias ? static_cast<const S*>(p.bias) + first : nothing;
  for_vectors<S>(count, [&](int64_t c, auto n) {
    Vec<S> grad = load(dy + c, n);
    if (p.silu) {
      Vec<S> total = load(bias + c, n);
      for (int64_t j = 0; j < p.k; ++j) total += load(weight + j * p.d + c, n) * load(from[j] + c, n);
      const Vec<S> open = logistic<S>(total);
      grad *= open * (S(1) + total * (S(1) - open));
    }
    store(to + c, grad, n);
  });
}

// The gradient of the input at step s: from the k steps that read it, and from the state that keeps it.
template <class T>
void Task<T>::input_gradient(int64_t s, int64_t start) {
  for (int64_t j = 0; j < p.k; ++j) {
    const int64_t t = s + p.k - 1 - j;  // weight j reads s at this step
    rows[j] = t >= 0 && t < p.l && p.same(b, s, t) ? before + (t - start) * width : nothing;
  }
  const int64_t row = s - (p.l + 1 - p.k);
  const bool kept = row >= 0 && p.same(b, s, p.l - 1);
  const T* dlast = kept ? static_cast<const T*>(p.dlast) + (b * (p.k - 1) + row) * p.d + first : zero;
  T* to = s >= 0 ? p.dx.at<T>(b, s, first) : static_cast<T*>(p.dstate) + (b * (p.k - 1) + s + p.k - 1) * p.d + first;
  const S* weight = static_cast<const S*>(p.weight) + first;
  for_vectors<S>(count, [&](int64_t c, auto n) {
    Vec<S> grad = load(dlast + c, n);
    for (int64_t j = 0; j < p.k; ++j) grad += load(weight + j * p.d + c, n) * load(rows[j] + c, n);
    store(to + c, grad, n);
  });
}

// What the weights j .. j + together - 1 get from a tile.
template <class T>
template <int vectors, int together, class N>
void Task<T>::weight_gradient(int64_t j, int64_t c, int64_t steps, N n) {
  Vec<S> total[together][vectors] = {};
  for (int64_t t = 0; t < steps; ++t) {
    const S* grad = before + t * width + c;
    const T* const* x = taps + t * p.k + j;
    for (int v = 0; v < vectors; ++v) {
      const Vec<S> by = load(grad + v * lanes<S>, n);
      for (int i = 0; i < together; ++i) total[i][v] += by * load(x[i] + c + v * lanes<S>, n);
    }
  }
  for (int i = 0; i < together; ++i) add<vectors>(total[i], dweight + (j + i) * width + c, n);
}

template <class T>
template <int vectors, class N>
void Task<T>::parameter_gradients(int64_t c, int64_t steps, N n) {
  int64_t j = 0;
  for (; j + 4 <= p.k; j += 4) weight_gradient<vectors, 4>(j, c, steps, n);
  for (; j < p.k; ++j) weight_gradient<vectors, 1>(j, c, steps, n);
  Vec<S> total[vectors] = {};
  for (int64_t t = 0; t < steps; ++t)
    for (int v = 0; v < vectors; ++v) total[v] += load(before + t * width + c + v * lanes<S>, n);
  add<vectors>(total, dweight + p.k * width + c, n);
}

template <class T>
void Task<T>::run(int64_t begin, int64_t end, S* part) {
  for (int64_t c = 0; c < width; ++c) nothing[c] = S(0), zero[c] = T{};
  for (int64_t i = 0; i < (p.k + 1) * width; ++i) dweight[i] = S(0);
  int64_t start = begin + (end - begin - 1) / tile * tile, steps = end - start;
  for (int64_t t = end; t < smaller(end + p.k - 1, p.l); ++t) {
    find_taps(t, taps);
    before_activation(t, taps, before + (t - start) * width);
  }
  for (; start >= begin; start -= tile, steps = tile) {
    for (int64_t t = 0; t < steps; ++t) {
      prefetch(p.x, start + t - tile), prefetch(p.dy, start + t - tile);
      find_taps(start + t, taps + t * p.k);
      before_activation(start + t, taps + t * p.k, before + t * width);
    }
    for (int64_t s = start == 0 ? 1 - p.k : start; s < start + steps; ++s) input_gradient(s, start);
    int64_t c = 0;
    for (; c + 4 * lanes<S> <= count; c += 4 * lanes<S>)
      parameter_gradients<4>(c, steps, std::integral_constant<int, lanes<S>>{});
    for (; c < count; c += lanes<S>) parameter_gradients<1>(c, steps, static_cast<int>(smaller(lanes<S>, count - c)));
    std::memmove(before + tile * width, before, (p.k - 1) * width * sizeof(S));
  }
  for (int64_t j = 0; j <= p.k; ++j)
    for (int64_t c = 0; c < count; ++c) part[j * p.d + c] = dweight[j * width + c];
}

template <class T>
void run(const ShortConvolutionBackward& p) {
  using S = arithmetic_t<T>;
  const int64_t blocks = ceil_div(p.l, convolution_block), wide = Task<T>::width, across = ceil_div(p.d, wide);
  auto body = [&](int64_t at) {
    Task<T> task(static_cast<char*>(scratch(Task<T>(nullptr, p).bytes)), p);
    const int64_t part = at / across, begin = part % blocks * convolution_block;
    task.b = part / blocks, task.first = at % across * wide, task.count = smaller(wide, p.d - task.first);
    task.run(begin, smaller(begin + convolution_block, p.l),
             static_cast<S*>(p.dweight_parts) + part * (p.k + 1) * p.d + task.first);
  };
  parallel_for(p.b * blocks * across, worth(p.threads, p.b * p.l * p.d), body);
  sum_parts<S>(p.dweight_parts, p.b * blocks, (p.k + 1) * p.d, p.dweight, p.threads);
}

}  // namespace

void short_convolution_backward(const ShortConvolutionBackward& p) {
  by_storage(p.storage, [&] { run<float>(p); }, [&] { run<double>(p); }, [&] { run<bfloat16>(p); });
}

}  // namespace adder::ADDER_ISA
