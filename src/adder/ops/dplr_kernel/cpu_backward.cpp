// S4's kernel, backward: the tables are built again, and their steps run from the end.
//
//     dY = dK X    dX = dK^T Y                     (dK as a grid of blocks and steps)
//     Y[a+1] = Y[a] PS          dY[a] += dY[a+1] PS^T      dPS = sum Y[a]^T dY[a+1]
//     X[have+s] = X[s] Q        dX[s] += dX[have+s] Q^T    dQ += sum X[s]^T dX[have+s]
//     Q' = Q Q                  dQ = dQ' Q^T + Q^T dQ'
#include "cpu_tables.hpp"

namespace adder::ADDER_ISA {
namespace {

constexpr int64_t most_blocks = 256;  // of a sum over blocks in the type of K; such sums are added up in double

template <class S>
struct Adjoint {
  DplrTables<S> tables;
  double *dX, *dY;        // (S, row), (A, row)
  double *dQ, *other, *T;  // (n, row)
  S* part;                 // (max(S, A), row)
  int64_t bytes;

  Adjoint(char* base, const DplrKernel& p, Arena arena = {nullptr}) : tables(base, p, arena) {
    dX = arena.take<double>(p.steps * tables.row), dY = arena.take<double>(p.blocks() * tables.row);
    for (double** each : {&dQ, &other, &T}) *each = arena.take<double>(tables.square);
    part = arena.take<S>((p.steps > p.blocks() ? p.steps : p.blocks()) * tables.row);
    bytes = arena.used;
  }
};

// dY and dX of output c, from the products with dK; dX is added to.
template <class S>
void through_product(const DplrKernelBackward& p, const Adjoint<S>& g, int64_t h, int64_t c) {
  const int64_t row = g.tables.row, steps = p.steps, blocks = p.blocks(), whole = p.l / steps, rest = p.l % steps;
  const S* dK = static_cast<const S*>(p.dK) + (c * p.h + h) * p.l;
  multiply<S>({dK, steps, 1}, whole, steps, g.tables.x, row, row, g.part, row);
  if (rest) multiply<S>({dK + whole * steps, steps, 1}, 1, rest, g.tables.x, row, row, g.part + whole * row, row);
  for (int64_t i = 0; i < blocks * row; ++i) g.dY[i] = g.part[i];
  for (int64_t first = 0; first < blocks; first += most_blocks) {
    const int64_t all = smaller(blocks, first + most_blocks), full = smaller(whole, all) - first;
    multiply<S>({dK + first * steps, 1, steps}, steps, full, g.tables.y + first * row, row, row, g.part, row);
    if (first + full < all)
      multiply<S>({dK + whole * steps, 1, steps}, rest, 1, g.tables.y + whole * row, row, row, g.part, row, true);
    for (int64_t i = 0; i < steps * row; ++i) g.dX[i] += g.part[i];
  }
}

template <class S>
void run_system(const DplrKernelBackward& p, const Adjoint<S>& g, int64_t h) {
  const DplrTables<S>& t = g.tables;
  const int64_t n = p.n, row = t.row, blocks = p.blocks();
  t.build_x(h);
  for (int64_t i = 0; i < p.steps * row; ++i) g.dX[i] = 0;
  for (int64_t i = 0; i < t.square; ++i) g.dQ[i] = 0;
  const double* last = t.Q + p.levels() * t.square;
  for (int64_t c = 0; c < p.c; ++c) {
    t.build_y(h, c);
    through_product(p, g, h, c);
    for (int64_t a = blocks - 1; a > 0; --a)
      multiply<double>({g.dY + a * row, row, 1}, 1, n, last, row, row, g.dY + (a - 1) * row, row, true);
    if (blocks > 1) multiply<double>({g.dY + row, 1, row}, n, blocks - 1, t.Y, row, row, g.dQ, row, true);
    for (int64_t i = 0; i < n; ++i) p.dC[(c * p.h + h) * n + i] = g.dY[i];
  }
  for (int i = p.levels() - 1; i >= 0; --i) {
    const double* Q = t.Q + i * t.square;
    const int64_t have = int64_t(1) << i;
    for (int64_t j = 0; j < t.square; ++j) g.T[j] = 0;
    transpose(Q, row, n, n, g.T, row);
    multiply<double>({g.dQ, row, 1}, n, n, g.T, row, row, g.other, row);
    multiply<double>({Q, 1, row}, n, n, g.dQ, row, row, g.other, row, true);
    multiply<double>({t.X, 1, row}, n, have, g.dX + have * row, row, row, g.other, row, true);
    multiply<double>({g.dX + have * row, row, 1}, have, n, g.T, row, row, g.dX, row, true);
    for (int64_t j = 0; j < t.square; ++j) g.dQ[j] = g.other[j];
  }
  for (int64_t i = 0; i < n; ++i) p.dBbar[h * n + i] = g.dX[i];
  transpose(g.dQ, row, n, n, p.dAbar + h * n * n, n);
}

template <class S>
void run(const DplrKernelBackward& p) {
  auto body = [&](int64_t h) {
    const Adjoint<S> g(static_cast<char*>(scratch(Adjoint<S>(nullptr, p).bytes)), p);
    run_system(p, g, h);
  };
  parallel_for(p.h, worth(p.threads, p.h * p.n * (p.n + p.c * p.l / 16)), body);
}

}  // namespace

void dplr_kernel_backward(const DplrKernelBackward& p) {
  by_storage(p.storage, [&] { run<float>(p); }, [&] { run<double>(p); }, [] {});
}

}  // namespace adder::ADDER_ISA
