// Long convolution, backward: a task is a vector of channels and a group of units; a unit is a block of inputs of one
// batch row. Each unit gives the gradients of its inputs, and adds its part of the gradient of K to the group's.
#include "long_convolution/cpu_common.hpp"
#include "long_convolution/cpu_direct.hpp"

namespace adder::ADDER_ISA {
namespace {

// Between the transforms of u and of each dy, and that of du, which takes u's place.
template <class S>
struct Adjoints {
  const Transform& plan;
  S* x;              // (1 + c, points): u, then each dy
  const S* spectra;  // (c, points)
  S* parts;          // (c, points)
  bool begins;       // the first unit of its group
  int downs;
  static constexpr int ups = 1;
  S* down(int i) const { return x + i * plan.points * point<S>; }
  S* up(int) const { return x; }
  template <int R>
  void at(int64_t first, int64_t blocks) const {
    for (int64_t block = 0; block < blocks; ++block, first += R) {
      S* u = x + first * point<S>;
      Point<S> a[R];
      each<R>([&](auto q) { a[q] = get(u + q * point<S>); });
      butterfly<S, R, false>(a);
      each<R>([&](auto q) { put(u + q * point<S>, a[q]); });
      for (int i = 1; i < downs; ++i) {
        const int64_t to = ((i - 1) * plan.points + first) * point<S>;
        S* dy = down(i) + first * point<S>;
        each<R>([&](auto q) { a[q] = get(dy + q * point<S>); });
        butterfly<S, R, false>(a);
        each<R>([&](auto q) {
          S* part = parts + to + q * point<S>;
          const Point<S> product = times_conjugate(a[q], get(u + q * point<S>));
          put(part, begins ? product : get(part) + product);
          a[q] = times_conjugate(a[q], get(spectra + to + q * point<S>));
          if (i > 1) a[q] = a[q] + get(down(i - 1) + (first + q) * point<S>);
        });
        if (i + 1 < downs) each<R>([&](auto q) { put(dy + q * point<S>, a[q]); });
      }
      butterfly<S, R, true>(a);
      each<R>([&](auto q) { put(u + q * point<S>, a[q]); });
    }
  }
};

template <class T>
struct Task {
  using S = arithmetic_t<T>;
  const LongConvolutionBackward& p;
  const int64_t longest;  // inputs of a unit
  Desk<T> desk;
  S *x, *dy, *sums;  // (1 + c, points) or (longest); (longest + taps - 1); (longest)
  int64_t bytes;

  Task(char* base, const LongConvolutionBackward& p) : p(p), longest(p.longest()) {
    Arena arena{base};
    desk.take(arena, p.transform ? 2 * p.transform->points : 0, p.h % lanes<S> == 0);
    x = arena.take<S>((p.transform ? (p.c + 1) * p.width() : longest) * lanes<S>);
    dy = arena.take<S>(p.transform ? 0 : (longest + p.taps - 1) * lanes<S>);
    sums = arena.take<S>(p.transform ? 0 : longest * lanes<S>);
    bytes = arena.used;
  }

  // Inputs start .. end - 1, and the steps from there on that they reach.
  void run(int64_t b, int64_t vector, int64_t start, int64_t end, bool begins, S* parts) {
    const Signal<const T> u = inputs_of<const T>(p, p.u, p.state, b, vector);
    const Signal<T> du = inputs_of<T>(p, p.du, p.dstate, b, vector);
    const int64_t width = p.width() * lanes<S>, from = start < 0 ? 0 : start, to = smaller(end + p.taps - 1, p.l);
    const S* kernels = static_cast<const S*>(p.kernels) + vector * p.c * width;
    auto grad = [&](int64_t c) { return outputs_of<const T>(p, p.dy, b, vector, c); };
    if (p.transform) {
      desk.in(*p.transform, u, start, start, end, p.u.batch, x);
      for (int64_t c = 0; c < p.c; ++c)
        desk.in(*p.transform, grad(c), start, from, to, p.dy.batch, x + (c + 1) * width);
      descend<S>(*p.transform, Adjoints<S>{*p.transform, x, kernels, parts, begins, static_cast<int>(p.c + 1)});
      desk.out(*p.transform, x, du, start, start, end);
    } else {
      const int64_t count = end - start;
      desk.gather(u, start, start, end, count, x);
      for (int64_t i = 0; i < count * lanes<S>; ++i) sums[i] = S(0);
      if (begins)
        for (int64_t i = 0; i < p.c * width; ++i) parts[i] = S(0);
      for (int64_t c = 0; c < p.c; ++c) {
        desk.gather(grad(c), start, from, to, count + p.taps - 1, dy);
        correlate(kernels + c * width, 1, p.taps, dy, count, sums);
        correlate(x, 1, count, dy, p.taps, parts + c * width);
      }
      desk.scatter(sums, du, start, end);
    }
  }
};

// parts (vectors, c, width), to the gradient of K: back from the spectrum, and channel by channel.
template <class S>
void finish(const LongConvolutionBackward& p, int64_t vectors) {
  const int64_t width = p.width() * lanes<S>;
  auto body = [&](int64_t task) {
    const int64_t first = task / p.c * lanes<S>, n = smaller(lanes<S>, p.h - first);
    S *part = static_cast<S*>(p.parts) + task * width, *side = part;
    if (p.transform) {
      Desk<S> desk;
      auto pieces = [&](char* base) {
        Arena arena{base};
        desk.take(arena, 2 * p.transform->points, false);
        return arena.used;
      };
      pieces(static_cast<char*>(scratch(pieces(nullptr))));
      descend<S>(*p.transform, Alone<S, true>{part, S(1) / S(p.transform->points)});
      desk.out_padded(*p.transform, part, 0, p.taps);
      side = desk.padded;
    }
    S* to = static_cast<S*>(p.dK) + (task % p.c * p.h + first) * p.k;
    transpose(side, lanes<S>, p.taps, n, to, p.k);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = p.taps; j < p.k; ++j) to[i * p.k + j] = S(0);
  };
  parallel_for(vectors * p.c, worth(p.threads, vectors * p.c * p.width() * lanes<S>), body);
}

template <class T>
void run(const LongConvolutionBackward& p) {
  using S = arithmetic_t<T>;
  const int64_t vectors = vectors_of<T>(p), size = p.c * p.width() * lanes<S>;
  const int64_t longest = p.longest(), blocks = ceil_div(p.l + p.before, longest), units = p.b * blocks;
  const int64_t each_group = ceil_div(units, p.groups);
  prepare_kernels<S>(p, vectors);
  auto body = [&](int64_t at) {
    Task<T> task(static_cast<char*>(scratch(Task<T>(nullptr, p).bytes)), p);
    const int64_t group = at % p.groups, vector = at / p.groups, first = group * each_group;
    S* parts = static_cast<S*>(p.parts) + (group * vectors + vector) * size;
    for (int64_t unit = first; unit < smaller(first + each_group, units); ++unit) {
      const int64_t start = unit % blocks * longest - p.before;
      task.run(unit / blocks, vector, start, smaller(start + longest, p.l), unit == first, parts);
    }
  };
  parallel_for(vectors * p.groups, worth(p.threads, p.b * p.l * p.h * p.c), body);
  if (p.groups > 1) sum_parts<S>(p.parts, p.groups, vectors * size, p.parts, p.threads);
  finish<S>(p, vectors);
}

}  // namespace

void long_convolution_backward(const LongConvolutionBackward& p) {
  by_storage(p.storage, [&] { run<float>(p); }, [&] { run<double>(p); }, [&] { run<bfloat16>(p); });
}

}  // namespace adder::ADDER_ISA
