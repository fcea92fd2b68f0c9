// S4's kernel, forward: a task is one system with all of its outputs.
#include "cpu_tables.hpp"

namespace adder::ADDER_ISA {
namespace {

template <class S>
void run(const DplrKernel& p) {
  auto body = [&](int64_t h) {
    Arena sizes{nullptr}, arena{nullptr};
    const int64_t bytes = DplrTables<S>(nullptr, p, sizes).bytes;
    const DplrTables<S> tables(static_cast<char*>(scratch(bytes)), p, arena);
    const int64_t steps = p.steps, last = p.blocks() - 1;
    tables.build_x(h);
    transpose(tables.x, tables.row, steps, p.n, tables.xt, steps);
    for (int64_t c = 0; c < p.c; ++c) {
      tables.build_y(h, c);
      S* K = static_cast<S*>(p.K) + (c * p.h + h) * p.l;
      multiply<S>({tables.y, tables.row, 1}, last, p.n, tables.xt, steps, steps, K, steps);
      multiply<S>({tables.y + last * tables.row, tables.row, 1}, 1, p.n, tables.xt, steps, p.l - last * steps,
                  K + last * steps, steps);
    }
  };
  parallel_for(p.h, worth(p.threads, p.h * p.n * (p.n + p.c * p.l / 16)), body);
}

}  // namespace

void dplr_kernel(const DplrKernel& p) {
  by_storage(p.storage, [&] { run<float>(p); }, [&] { run<double>(p); }, [] {});
}

}  // namespace adder::ADDER_ISA
