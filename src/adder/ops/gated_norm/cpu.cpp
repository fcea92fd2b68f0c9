// RMSNorm, plain and gated: a task is a fixed block of rows. One group of channels at a time passes through scratch
// memory in the first cache, so every tensor is read once and written once.
#include "gated_norm/cpu.hpp"

#include "kernel.hpp"
#include "math.hpp"

namespace adder::ADDER_ISA {
namespace {

enum Gate { none, first, after };  // no gate; y gated, then normalised; normalised, then gated

constexpr int sums = 4;  // vectors of partial sums, added in a fixed order

template <class S>
int64_t padded(int64_t count) {
  return ceil_div(count, sums * lanes<S>) * sums * lanes<S>;
}

// The sum of a b over a padded group, whose last elements are zeros.
template <class S>
S dot(const S* a, const S* b, int64_t count) {
  Vec<S> total[sums] = {};
  for (int64_t c = 0; c < count; c += sums * lanes<S>)
    for (int i = 0; i < sums; ++i) total[i] += load(a + c + i * lanes<S>) * load(b + c + i * lanes<S>);
  return sum<S>((total[0] + total[1]) + (total[2] + total[3]));
}

template <class S>
S inverse_root(S x) {
  if constexpr (sizeof(S) == 4) return 1 / __builtin_sqrtf(x);
  return 1 / __builtin_sqrt(x);
}

template <class T, Gate gate>
void forward_row(const GatedNorm& p, int64_t b, int64_t t, arithmetic_t<T>* inside) {
  using S = arithmetic_t<T>;
  for (int64_t at = 0; at < p.d; at += p.group) {
    const T* y = p.y.at<const T>(b, t, at);
    const T* z = gate == none ? nullptr : p.z.at<const T>(b, t, at);
    T* out = p.out.at<T>(b, t, at);
    const S* weight = static_cast<const S*>(p.weight) + at;
    for_vectors<S>(p.group, [&](int64_t c, auto n) {
      Vec<S> value = load(y + c, n);
      if constexpr (gate == first) {
        const Vec<S> by = load(z + c, n);
        value *= by * logistic<S>(by);
      }
      store(inside + c, value, n);
    });
    const S scale = inverse_root<S>(dot(inside, inside, padded<S>(p.group)) / S(p.group) + S(p.eps));
    for_vectors<S>(p.group, [&](int64_t c, auto n) {
      Vec<S> value = load(inside + c, n) * scale * load(weight + c, n);
      if constexpr (gate == after) {
        const Vec<S> by = load(z + c, n);
        value *= by * logistic<S>(by);
      }
      store(out + c, value, n);
    });
  }
}

// inside = y gate, or y;  normal = inside scale;  dinside = scale (dnormal - normal mean(dnormal normal))
template <class T, Gate gate>
void backward_row(const GatedNormBackward& p, int64_t b, int64_t t, arithmetic_t<T>* inside, arithmetic_t<T>* dnormal,
                  arithmetic_t<T>* opened, arithmetic_t<T>* dweight_row) {
  using S = arithmetic_t<T>;
  for (int64_t at = 0; at < p.d; at += p.group) {
    const T *y = p.y.at<const T>(b, t, at), *dout = p.dout.at<const T>(b, t, at);
    const T* z = gate == none ? nullptr : p.z.at<const T>(b, t, at);
    const S* weight = static_cast<const S*>(p.weight) + at;
    for_vectors<S>(p.group, [&](int64_t c, auto n) {
      Vec<S> value = load(y + c, n), grad = load(dout + c, n) * load(weight + c, n);
      if constexpr (gate != none) {
        const Vec<S> by = load(z + c, n), open = logistic<S>(by);
        store(opened + c, open, n);
        (gate == first ? value : grad) *= by * open;
      }
      store(inside + c, value, n);
      store(dnormal + c, grad, n);
    });
    const int64_t wide = padded<S>(p.group);
    const S size = S(p.group);
    const S scale = inverse_root<S>(dot(inside, inside, wide) / size + S(p.eps));
    const S mean = scale * (scale * dot(inside, dnormal, wide) / size);
    T* dy = p.dy.at<T>(b, t, at);
    T* dz = gate == none ? nullptr : p.dz.at<T>(b, t, at);
    S* dweight = dweight_row + at;
    for_vectors<S>(p.group, [&](int64_t c, auto n) {
      const Vec<S> value = load(inside + c, n), normal = value * scale;
      const Vec<S> dinside = scale * (load(dnormal + c, n) - value * mean);
      Vec<S> dscaled = load(dout + c, n);
      if constexpr (gate == none) {
        store(dy + c, dinside, n);
      } else {
        const Vec<S> by = load(z + c, n), open = load(opened + c, n);
        const Vec<S> slope = open * (S(1) + by * (S(1) - open));
        if constexpr (gate == first) {
          store(dz + c, dinside * load(y + c, n) * slope, n);
          store(dy + c, dinside * by * open, n);
        } else {
          store(dz + c, dscaled * normal * load(weight + c, n) * slope, n);
          store(dy + c, dinside, n);
          dscaled *= by * open;
        }
      }
      store(dweight + c, load(dweight + c, n) + dscaled * normal, n);
    });
  }
}

template <class S>
S* zeros(Arena& arena, int64_t count) {
  S* to = arena.take<S>(count);
  for (int64_t i = 0; arena.base && i < count; ++i) to[i] = S(0);
  return to;
}

template <class F>
void for_rows(const GatedNorm& p, int64_t block, F row) {
  const int64_t begin = block * norm_block, end = smaller(begin + norm_block, p.b * p.l);
  for (int64_t i = begin; i < end; ++i) row(i / p.l, i % p.l);
}

template <class T, Gate gate>
void forward(const GatedNorm& p) {
  using S = arithmetic_t<T>;
  auto body = [&](int64_t block) {
    const int64_t wide = padded<S>(p.group);
    Arena arena{static_cast<char*>(scratch(wide * sizeof(S)))};
    S* inside = zeros<S>(arena, wide);
    for_rows(p, block, [&](int64_t b, int64_t t) { forward_row<T, gate>(p, b, t, inside); });
  };
  parallel_for(ceil_div(p.b * p.l, norm_block), worth(p.threads, p.b * p.l * p.d), body);
}

template <class T, Gate gate>
void backward(const GatedNormBackward& p) {
  using S = arithmetic_t<T>;
  const int64_t blocks = ceil_div(p.b * p.l, norm_block);
  auto body = [&](int64_t block) {
    const int64_t wide = padded<S>(p.group);
    Arena arena{static_cast<char*>(scratch(3 * wide * sizeof(S)))};
    S *inside = zeros<S>(arena, wide), *dnormal = zeros<S>(arena, wide), *opened = zeros<S>(arena, wide);
    S* dweight = static_cast<S*>(p.dweight_parts) + block * p.d;
    for (int64_t c = 0; c < p.d; ++c) dweight[c] = S(0);
    for_rows(p, block,
             [&](int64_t b, int64_t t) { backward_row<T, gate>(p, b, t, inside, dnormal, opened, dweight); });
  };
  parallel_for(blocks, worth(p.threads, p.b * p.l * p.d), body);
  sum_parts<S>(p.dweight_parts, blocks, p.d, p.dweight, p.threads);
}

template <class T>
void by_gate(const GatedNorm& p) {
  if (!p.z.data) return forward<T, none>(p);
  p.norm_before_gate ? forward<T, after>(p) : forward<T, first>(p);
}
template <class T>
void by_gate(const GatedNormBackward& p) {
  if (!p.z.data) return backward<T, none>(p);
  p.norm_before_gate ? backward<T, after>(p) : backward<T, first>(p);
}

template <class P>
void dispatch(const P& p) {
  by_storage(p.storage, [&] { by_gate<float>(p); }, [&] { by_gate<double>(p); }, [&] { by_gate<bfloat16>(p); });
}

}  // namespace

void gated_norm(const GatedNorm& p) { dispatch(p); }
void gated_norm_backward(const GatedNormBackward& p) { dispatch(p); }

}  // namespace adder::ADDER_ISA
