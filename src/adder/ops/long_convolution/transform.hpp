// How a long convolution is cut up: by direct sums or by transforms, of how many points, with which factors.
// For bind.cpp alone: what is compiled for several instruction sets may not hold the standard library's functions.
#pragma once
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "long_convolution/cpu.hpp"

namespace adder {

// Cycles for each vector of channels, as measured with AVX-512 on Zen 4: for a point at a level with this radix, there
// and back; for all else about a point; and for a multiply-add in a direct sum. Only their ratios matter.
inline double level_cycles(int radix) {
  switch (radix) {
    case 2: return 6;
    case 3: return 12;
    case 4: return 10;
    case 5: return 13;
    case 7: return 18;
    default: return 15;
  }
}
inline double other_cycles(int64_t points) {  // and more where a signal and a spectrum no longer fit into 1 MB
  return 14 + 16 * std::max(0.0, std::log2(static_cast<double>(points) / 1024));
}
constexpr double direct_cycles = 1.3;
// A thread keeps the memory of 1 + c transforms: with float32 and AVX-512, 32 MB each at most.
constexpr int64_t fewest_points = 32, most_points = int64_t{1} << 18, most_taps = most_points;
constexpr int64_t direct_block = 256;

// The factors, small ones first: the first level walks along as many streams at once, through memory. It is 3, 4 or 5;
// a factor of two comes second. None if there are factors other than 2, 3, 5 and 7, or no such first one.
inline std::vector<int> factors(int64_t points) {
  std::vector<int> out;
  int twos = 0;
  for (; points % 2 == 0; points /= 2) ++twos;
  for (int odd : {3, 5, 7})
    for (; points % odd == 0; points /= odd) out.push_back(odd);
  if (points != 1) return {};
  const bool all_eights = twos % 3 == 0 && twos > 3 && (out.empty() || out[0] == 7);
  const int fours = twos == 1 ? 0 : all_eights ? 3 : twos * 2 % 3;  // and eights, or a two alone
  out.insert(out.end(), fours, 4), out.insert(out.end(), (twos - 2 * fours) / 3, 8);
  std::sort(out.begin(), out.end());
  if (out.empty() || out[0] > 5) return {};
  if (twos == 1) out.insert(out.begin() + 1, 2);
  return out;
}

struct Size {
  int64_t points;
  double cycles;
};

// Every number of points that a transform may have, in their order.
inline const std::vector<Size>& sizes() {
  static const std::vector<Size> all = [] {
    std::vector<Size> out;
    for (int64_t seven = 1; seven <= most_points; seven *= 7)
      for (int64_t five = seven; five <= most_points; five *= 5)
        for (int64_t three = five; three <= most_points; three *= 3)
          for (int64_t points = three; points <= most_points; points *= 2) {
            const std::vector<int> radices = factors(points);
            double cycles = other_cycles(points);
            for (int radix : radices) cycles += level_cycles(radix);
            if (points >= fewest_points && !radices.empty()) out.push_back({points, cycles * static_cast<double>(points)});
          }
    std::sort(out.begin(), out.end(), [](Size a, Size b) { return a.points < b.points; });
    return out;
  }();
  return all;
}

struct Cut {
  int64_t points;  // 0: direct sums
  int64_t block;   // steps computed at once
};

// The cheapest way to compute `outputs` steps from `taps` taps; l of them have inputs of their own.
inline Cut cut(int64_t l, int64_t outputs, int64_t taps) {
  Cut best{0, std::min(l, direct_block)};
  double least = direct_cycles * static_cast<double>(outputs) * static_cast<double>(taps);
  for (const Size& size : sizes()) {
    const int64_t block = std::min(l, 2 * size.points + 1 - taps);
    if (block < 1) continue;
    const double blocks = block == l ? 1 : static_cast<double>((outputs + block - 1) / block);
    if (blocks * size.cycles < least) least = blocks * size.cycles, best = {size.points, block};
    if (block == l) break;
  }
  return best;
}

// The tables of a transform, kept for the next call.
template <class S>
struct Tables {
  Transform plan;
  std::vector<S> numbers;

  Tables(int64_t points, const std::vector<int>& radices) {
    plan.points = points, plan.levels = static_cast<int>(radices.size());
    std::vector<size_t> begin;
    int64_t size = points;
    for (int radix : radices) {
      begin.push_back(numbers.size());
      for (int64_t t = 0; t < size / radix; ++t)
        for (int64_t q = 1; q < radix; ++q) add(-q * t, size);
      size /= radix;
    }
    const size_t weights = numbers.size();
    for (int64_t t = 0; t < points; ++t) add(t, 4 * points);
    for (int i = 0; i < plan.levels; ++i) plan.radix[i] = radices[i], plan.turns[i] = numbers.data() + begin[i];
    plan.weights = numbers.data() + weights;
  }
  // e^(2 pi i part / whole), from an angle within an eighth of a turn.
  void add(int64_t part, int64_t whole) {
    part = ((part % whole) + whole) % whole;
    const int64_t eighth = 8 * part / whole;
    const int64_t quarters = (eighth + 1) / 2;  // the nearest quarter turn
    const double rest = static_cast<double>(4 * part - quarters * whole) / static_cast<double>(whole);
    const double angle = 1.57079632679489661923 * rest;
    const double cosine = std::cos(angle), sine = std::sin(angle);
    const double re[] = {cosine, -sine, -cosine, sine}, im[] = {sine, cosine, -sine, -cosine};
    numbers.push_back(static_cast<S>(re[quarters % 4])), numbers.push_back(static_cast<S>(im[quarters % 4]));
  }
};

template <class S>
const Transform* transform_of(int64_t points) {
  static std::mutex mutex;
  static std::map<int64_t, std::unique_ptr<Tables<S>>> kept;
  std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Tables<S>>& tables = kept[points];
  if (!tables) tables = std::make_unique<Tables<S>>(points, factors(points));
  return &tables->plan;
}

}  // namespace adder
