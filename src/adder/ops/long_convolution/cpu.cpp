// Long convolution, forward: a task is a block of steps of one batch row and one vector of channels.
#include "long_convolution/cpu_common.hpp"
#include "long_convolution/cpu_direct.hpp"

namespace adder::ADDER_ISA {
namespace {

// Between the transforms of u and of each output: a product with a kernel's spectrum. The last output takes u's place.
template <class S>
struct Products {
  const Transform& plan;
  S* x;  // (c, points)
  const S* spectra;
  int ups;
  static constexpr int downs = 1;
  S* down(int) const { return up(ups - 1); }
  S* up(int c) const { return x + c * plan.points * point<S>; }
  template <int R>
  void at(int64_t first, int64_t blocks) const {
    for (int64_t block = 0; block < blocks; ++block, first += R) {
      Point<S> a[R];
      each<R>([&](auto q) { a[q] = get(down(0) + (first + q) * point<S>); });
      butterfly<S, R, false>(a);
      for (int c = 0; c < ups; ++c) {
        const S* k = spectra + (c * plan.points + first) * point<S>;
        Point<S> y[R];
        each<R>([&](auto q) { y[q] = times(a[q], get(k + q * point<S>)); });
        butterfly<S, R, true>(y);
        each<R>([&](auto q) { put(up(c) + (first + q) * point<S>, y[q]); });
      }
    }
  }
};

template <class T>
struct Task {
  using S = arithmetic_t<T>;
  const LongConvolution& p;
  Desk<T> desk;
  S *x, *sums;  // (c, points) or a window of inputs; (block)
  int64_t bytes;

  Task(char* base, const LongConvolution& p) : p(p) {
    Arena arena{base};
    desk.take(arena, p.transform ? 2 * p.transform->points : 0, p.h % lanes<S> == 0);
    x = arena.take<S>((p.transform ? p.c * 2 * p.transform->points : p.block + p.taps - 1) * lanes<S>);
    sums = arena.take<S>(p.transform ? 0 : p.block * lanes<S>);
    bytes = arena.used;
  }

  void run(int64_t b, int64_t vector, int64_t start, int64_t end, int64_t ahead) {
    const Signal<const T> u = inputs_of<const T>(p, p.u, p.state, b, vector);
    const int64_t width = p.width() * lanes<S>, reached = start + 1 - p.taps;
    const S* kernels = static_cast<const S*>(p.kernels) + vector * p.c * width;
    if (p.transform) {
      const int64_t origin = reached < -p.before ? -p.before : reached;
      desk.in(*p.transform, u, origin, origin, end, ahead, x + (p.c - 1) * width);
      descend<S>(*p.transform, Products<S>{*p.transform, x, kernels, static_cast<int>(p.c)});
      for (int64_t c = 0; c < p.c; ++c)
        desk.out(*p.transform, x + c * width, outputs_of<T>(p, p.y, b, vector, c), origin, start, end);
    } else {
      desk.gather(u, reached, -p.before, end, end - reached, x);
      for (int64_t c = 0; c < p.c; ++c) {
        for (int64_t i = 0; i < (end - start) * lanes<S>; ++i) sums[i] = S(0);
        correlate(kernels + c * width + (p.taps - 1) * lanes<S>, -1, p.taps, x, end - start, sums);
        desk.scatter(sums, outputs_of<T>(p, p.y, b, vector, c), start, end);
      }
    }
  }
};

template <class T>
void run(const LongConvolution& p) {
  const int64_t vectors = vectors_of<T>(p), blocks = ceil_div(p.l, p.block), units = p.b * blocks;
  prepare_kernels<arithmetic_t<T>>(p, vectors);
  auto body = [&](int64_t at) {
    Task<T> task(static_cast<char*>(scratch(Task<T>(nullptr, p).bytes)), p);
    const int64_t unit = at / vectors, start = unit % blocks * p.block;
    task.run(unit / blocks, at % vectors, start, smaller(start + p.block, p.l),
             lanes<arithmetic_t<T>>);  // the next task has the next channels
  };
  parallel_for(vectors * units, worth(p.threads, p.b * p.l * p.h * p.c), body);
}

}  // namespace

void long_convolution(const LongConvolution& p) {
  by_storage(p.storage, [&] { run<float>(p); }, [&] { run<double>(p); }, [&] { run<bfloat16>(p); });
}

}  // namespace adder::ADDER_ISA
