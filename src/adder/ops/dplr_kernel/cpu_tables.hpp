// The two tables of one system: K[a S + s] = Y[a] . X[s] with X[s] = Abar^s Bbar and Y[a] = C Abar^(a S).
// Rows are padded with zeros to whole vectors; everything lies in a thread's scratch memory, tables in double.
#pragma once
#include "cpu.hpp"
#include "matrix.hpp"

namespace adder::ADDER_ISA {

template <class S>
struct DplrTables {
  const DplrKernel& p;
  int64_t row, square;  // numbers in a row, and in a matrix
  double *Q;            // (levels + 1, n, row): Q[i] is the transpose of Abar^(2^i)
  double *PS;           // Abar^S
  double *X, *Y;        // (S, row), (A, row)
  S *x, *y, *xt;        // X and Y in the type of K, and x transposed, (row, S)
  int64_t bytes;

  DplrTables(char* base, const DplrKernel& p, Arena& arena) : p(p) {
    arena.base = base;
    row = ceil_div(p.n, lanes<float>) * lanes<float>, square = p.n * row;
    Q = arena.take<double>((p.levels() + 1) * square), PS = arena.take<double>(square);
    X = arena.take<double>(p.steps * row), Y = arena.take<double>(p.blocks() * row);
    x = arena.take<S>(p.steps * row), y = arena.take<S>(p.blocks() * row), xt = arena.take<S>(p.steps * row);
    bytes = arena.used;
  }

  // The powers of Abar up to S, and X, doubled: X[2^i + s] = X[s] Q[i].
  void build_x(int64_t h) const {
    const int64_t n = p.n;
    for (int64_t i = 0; i < square; ++i) Q[i] = 0;
    transpose(p.Abar + h * n * n, n, n, n, Q, row);
    copy_row(p.Bbar + h * n, X);
    for (int i = 0; i < p.levels(); ++i) {
      const double* q = Q + i * square;
      const int64_t have = int64_t(1) << i;
      multiply<double>({X, row, 1}, have, n, q, row, row, X + have * row, row);
      multiply<double>({q, row, 1}, n, n, q, row, row, Q + (i + 1) * square, row);
    }
    for (int64_t i = 0; i < square; ++i) PS[i] = 0;
    transpose(Q + p.levels() * square, row, n, n, PS, row);
    for (int64_t i = 0; i < p.steps * row; ++i) x[i] = static_cast<S>(X[i]);
  }

  // Y of output c, row after row.
  void build_y(int64_t h, int64_t c) const {
    copy_row(p.C + (c * p.h + h) * p.n, Y);
    for (int64_t a = 1; a < p.blocks(); ++a)
      multiply<double>({Y + (a - 1) * row, row, 1}, 1, p.n, PS, row, row, Y + a * row, row);
    for (int64_t i = 0; i < p.blocks() * row; ++i) y[i] = static_cast<S>(Y[i]);
  }

  void copy_row(const double* from, double* to) const {
    for (int64_t i = 0; i < row; ++i) to[i] = i < p.n ? from[i] : 0;
  }
};

}  // namespace adder::ADDER_ISA
