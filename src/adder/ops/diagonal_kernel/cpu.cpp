// Sums over powers: a task is one channel and one block of its length. Powers are made in double, by doubling: no
// logarithm is taken, and z = 0 is exact. Rounded to S once, they are a side of a product of matrices. A sum that
// crosses blocks is added in their order.
#include "diagonal_kernel/cpu.hpp"

#include "kernel.hpp"
#include "matrix.hpp"

namespace adder::ADDER_ISA {
namespace {

constexpr int64_t panel_rows = 32;  // products of which are added up in S, the rest in double
constexpr int64_t room = 16;  // behind each row, so that rows do not share the lines of the first cache

// While this lives, numbers below the normal range count as zero: a kernel that fades is full of them, and on some
// machines each would cost a hundred cycles.
struct FlushTiny {
#if defined(__SSE2__)
  const unsigned before = __builtin_ia32_stmxcsr();
  FlushTiny() { __builtin_ia32_ldmxcsr(before | 0x8040); }
  ~FlushTiny() { __builtin_ia32_ldmxcsr(before); }
#endif
};

struct Number {
  double re, im;
};
inline Number operator*(Number a, Number b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }

template <bool pairs>
void write(double* to, int64_t at, double re, double im) {
  to[pairs ? 2 * at : at] = re;
  if (pairs) to[2 * at + 1] = im;
}

inline Number power(Number z, int64_t n) {
  Number result{1, 0};
  for (; n > 0; n /= 2, z = z * z)
    if (n % 2) result = result * z;
  return result;
}

template <bool pairs>
Number read(const double* from, int64_t at) {
  return pairs ? Number{from[2 * at], from[2 * at + 1]} : Number{from[at], 0};
}

// re, im [i] = first ratio^i, with a vector of room before [0].
struct Powers {
  double *re, *im;

  explicit Powers(Arena& arena) {
    for (double** each : {&re, &im}) *each = arena.take<double>(powers_most + room) + room;
  }
  // Each is a product of few factors: [n + i] = [i] ratio^n, for n = 1, 2, 4, ...
  template <bool pairs>
  void fill(Number first, Number ratio, int64_t count) {
    re[0] = first.re, im[0] = first.im;
    for (int64_t n = 1; n < count; n *= 2, ratio = ratio * ratio)
      for_vectors<double>(n, [&](int64_t i, auto width) {
        const Vec<double> a = load(re + i, width), b = load(im + i, width);
        store(re + n + i, pairs ? a * ratio.re - b * ratio.im : a * ratio.re, width);
        store(im + n + i, pairs ? a * ratio.im + b * ratio.re : b, width);
      });
  }
  Number operator[](int64_t i) const { return {re[i], im[i]}; }
};

template <class S>
void round_to(S* to, const double* from, int64_t count, double sign = 1) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<S>(sign * from[i]);
}

// One channel, and `rows` values of a from the `first` on: `full` rows of steps, and one of `rest` steps if there is any.
struct Task {
  int64_t block, h, steps, first, start, full, rest, rows;
  Task(const DiagonalPowers& p, int64_t task)
      : block(task % p.blocks()), h(task / p.blocks()), steps(p.steps()), first(block * powers_most), start(first * steps) {
    const int64_t count = smaller(p.l - start, powers_most * steps);
    full = count / steps, rest = count % steps, rows = full + (rest > 0);
  }
};

template <class S>
struct KernelScratch {
  Powers powers;
  Number *ratio, *begin;  // of each mode: z^S, and z^l at the start of the block
  S *fine, *coarse;       // (numbers, s) and (numbers, a), where a mode has one number or two
  int64_t fine_row, coarse_row, bytes;

  KernelScratch(Arena arena, const DiagonalPowers& p) : powers(arena) {
    const int64_t numbers = (p.pairs ? 2 : 1) * p.m;
    fine_row = p.steps() + room, coarse_row = powers_most + room;
    ratio = arena.take<Number>(p.m), begin = arena.take<Number>(p.m);
    fine = arena.take<S>(numbers * fine_row), coarse = arena.take<S>(numbers * coarse_row);
    bytes = arena.used;
  }
};

// K[a, s] = sum_j Re (w_j z_j^(aS)) Re z_j^s - Im (w_j z_j^(aS)) Im z_j^s
template <class S, bool pairs>
void kernel_task(const DiagonalKernel& p, int64_t number) {
  const FlushTiny guard;
  const Task t(p, number);
  const int64_t m = p.m, inner = (pairs ? 2 : 1) * m;
  KernelScratch<S> x(Arena{static_cast<char*>(scratch(KernelScratch<S>(Arena{nullptr}, p).bytes))}, p);
  for (int64_t j = 0; j < m; ++j) {
    const Number z = read<pairs>(p.z, t.h * m + j);
    x.powers.template fill<pairs>({1, 0}, z, t.steps);
    round_to(x.fine + j * x.fine_row, x.powers.re, t.steps);
    if (pairs) round_to(x.fine + (m + j) * x.fine_row, x.powers.im, t.steps, -1);
    x.ratio[j] = x.powers[t.steps - 1] * z;
    x.begin[j] = power(x.ratio[j], t.first);
  }
  for (int64_t c = 0; c < p.c; ++c) {
    const int64_t channel = c * p.h + t.h;
    for (int64_t j = 0; j < m; ++j) {
      x.powers.template fill<pairs>(read<pairs>(p.w, channel * m + j) * x.begin[j], x.ratio[j], t.rows);
      round_to(x.coarse + j * x.coarse_row, x.powers.re, t.rows);
      if (pairs) round_to(x.coarse + (m + j) * x.coarse_row, x.powers.im, t.rows);
    }
    S* const K = static_cast<S*>(p.K) + channel * p.l + t.start;
    multiply<S>({x.coarse, 1, x.coarse_row}, t.full, inner, x.fine, x.fine_row, t.steps, K, t.steps);
    if (t.rest)
      multiply<S>({x.coarse + t.full, 1, x.coarse_row}, 1, inner, x.fine, x.fine_row, t.rest, K + t.full * t.steps, t.steps);
  }
}

template <class S>
struct MomentsScratch {
  Powers powers;
  double* counts;               // 0, 1, 2, ...
  S *coarse, *gradient, *sums;  // (2 numbers, a), (a, s), (panels, 2 numbers, s)
  int64_t coarse_row, fine_row, panel, bytes;

  MomentsScratch(Arena arena, const DiagonalPowers& p) : powers(arena) {
    const int64_t numbers = (p.pairs ? 2 : 1) * p.m;
    fine_row = p.steps() + room, coarse_row = powers_most + room;
    counts = arena.take<double>(powers_most);
    panel = 2 * numbers * fine_row;
    coarse = arena.take<S>(2 * numbers * coarse_row), sums = arena.take<S>(powers_most / panel_rows * panel);
    gradient = arena.take<S>(powers_most * fine_row);
    bytes = arena.used;
  }
};

inline Vec<double> load_wide(const double* from) { return load(from); }
inline Vec<double> load_wide(const float* from) {
  typedef float Half __attribute__((vector_size(ADDER_VECTOR_BYTES / 2)));
  Half half;
  std::memcpy(&half, from, sizeof(half));
  return __builtin_convertvector(half, Vec<double>);
}

// With e = aS: rows of z^e (re, im by mode), then rows of the derivative e z^(e-1) = e z^(e-S) z^(S-1).
template <class S, bool pairs>
void coarse_table(const DiagonalPowers& p, const Task& t, const MomentsScratch<S>& x) {
  for (int64_t j = 0; j < p.m; ++j) {
    Powers powers = x.powers;
    const Number z = read<pairs>(p.z, t.h * p.m + j), before = power(z, t.steps - 1), ratio = before * z;
    powers.template fill<pairs>(power(ratio, t.first), ratio, t.rows);
    const Number earlier = t.first > 0 ? power(ratio, t.first - 1) : Number{0, 0};
    powers.re[-1] = earlier.re, powers.im[-1] = earlier.im;
    S* const to = x.coarse + j * x.coarse_row;
    const int64_t next = p.m * x.coarse_row;
    round_to(to, powers.re, t.rows);
    if (pairs) round_to(to + next, powers.im, t.rows);
    for (int64_t a = 0; a < t.rows; ++a) {
      const double e = static_cast<double>((t.first + a) * t.steps);
      const double re = powers.re[a - 1], im = powers.im[a - 1];
      to[(pairs ? 2 : 1) * next + a] = static_cast<S>(e * (pairs ? re * before.re - im * before.im : re * before.re));
      if (pairs) to[3 * next + a] = static_cast<S>(e * (re * before.im + im * before.re));
    }
  }
}

// With G[s] = sum_a dK[a, s] z^(aS) and its derivative G'[s]:  P0 = sum_s z^s G[s],  P1 = sum_s z^s G'[s] + s z^(s-1) G[s]
template <class S, bool pairs>
void moments_task(const DiagonalMoments& p, int64_t number) {
  const FlushTiny guard;
  const Task t(p, number);
  const int64_t m = p.m, numbers = (pairs ? 2 : 1) * m;
  MomentsScratch<S> x(Arena{static_cast<char*>(scratch(MomentsScratch<S>(Arena{nullptr}, p).bytes))}, p);
  for (int64_t s = 0; s < t.steps; ++s) x.counts[s] = static_cast<double>(s);
  coarse_table<S, pairs>(p, t, x);
  for (int64_t c = 0; c < p.c; ++c) {
    const int64_t channel = c * p.h + t.h;
    const S* const dK = static_cast<const S*>(p.dK) + channel * p.l + t.start;
    for (int64_t a = 0; a < t.rows; ++a) {
      const int64_t count = a < t.full ? t.steps : t.rest;
      S* const row = x.gradient + a * x.fine_row;
      std::memcpy(row, dK + a * t.steps, count * sizeof(S));
      for (int64_t s = count; s < t.steps; ++s) row[s] = 0;
    }
    for (int64_t a = 0; a < t.rows; a += panel_rows)
      multiply<S>({x.coarse + a, x.coarse_row, 1}, 2 * numbers, smaller(panel_rows, t.rows - a),
                  x.gradient + a * x.fine_row, x.fine_row, t.steps, x.sums + a / panel_rows * x.panel, x.fine_row);
    for (int64_t j = 0; j < m; ++j) {
      Powers powers = x.powers;
      powers.template fill<pairs>({1, 0}, read<pairs>(p.z, t.h * m + j), t.steps);
      powers.re[-1] = powers.im[-1] = 0;
      const int64_t next = m * x.fine_row;
      auto sum_at = [&](int64_t number, int64_t s) {
        const S* from = x.sums + j * x.fine_row + number * next + s;
        Vec<double> total = load_wide(from);
        for (int64_t a = panel_rows; a < t.rows; a += panel_rows) total += load_wide(from += x.panel);
        return total;
      };
      Vec<double> P0{}, P0i{}, P1{}, P1i{};
      for (int64_t s = 0; s < t.steps; s += lanes<double>) {
        const Vec<double> count = load(x.counts + s), f = load(powers.re + s), d = count * load(powers.re + s - 1);
        const Vec<double> g = sum_at(0, s), dg = sum_at(pairs ? 2 : 1, s);
        P0 += f * g, P1 += f * dg + d * g;
        if constexpr (pairs) {
          const Vec<double> fi = load(powers.im + s), di = count * load(powers.im + s - 1);
          const Vec<double> gi = sum_at(1, s), dgi = sum_at(3, s);
          P0 -= fi * gi, P0i += f * gi + fi * g;
          P1 -= fi * dgi + di * gi, P1i += f * dgi + fi * dg + d * gi + di * g;
        }
      }
      const int64_t all = p.c * p.h * m, at = t.block * 2 * all + channel * m + j;
      write<pairs>(p.parts, at, sum<double>(P0), sum<double>(P0i));
      write<pairs>(p.parts, at + all, sum<double>(P1), sum<double>(P1i));
    }
  }
}

template <class P>
void run(const P& p, void (*pairs)(const P&, int64_t), void (*real)(const P&, int64_t)) {
  auto body = [&](int64_t task) { (p.pairs ? pairs : real)(p, task); };
  parallel_for(p.h * p.blocks(), worth(p.threads, p.c * p.h * p.l * p.m / 4), body);
}

}  // namespace

void diagonal_kernel(const DiagonalKernel& p) {
  if (p.storage == Storage::float64)
    run(p, kernel_task<double, true>, kernel_task<double, false>);
  else
    run(p, kernel_task<float, true>, kernel_task<float, false>);
}

void diagonal_moments(const DiagonalMoments& p) {
  if (p.storage == Storage::float64)
    run(p, moments_task<double, true>, moments_task<double, false>);
  else
    run(p, moments_task<float, true>, moments_task<float, false>);
  if (p.blocks() > 1)
    sum_parts<double>(p.parts, p.blocks(), (p.pairs ? 2 : 1) * 2 * p.c * p.h * p.m, p.sums, p.threads);
}

}  // namespace adder::ADDER_ISA
