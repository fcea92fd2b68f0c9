// How a long convolution is cut up: by direct sums or by transforms, of how many points, with which factors.
#pragma once
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "long_convolution/cpu.hpp"

namespace adder {

// Estimated cycles for each point and vector: of a level with this radix, there and back; of all else in a transform;
// and of a multiply-add in a direct sum. What matters is the ratios.
inline double level_cycles(int radix) {
  switch (radix) {
    case 2: return 6;
    case 3: return 9;
    case 4: return 9;
    case 5: return 12;
    case 7: return 17;
    default: return 13;
  }
}
constexpr double transform_cycles = 20, direct_cycles = 1.2;
constexpr int64_t fewest_points = 32, most_points = int64_t{1} << 20;
constexpr int64_t direct_block = 256;

// The largest factor first, the largest power of two last: the first level leaves blocks that fit into a cache, and the
// leaves have no turns. Empty if there are other factors.
inline std::vector<int> factors(int64_t points) {
  std::vector<int> out;
  for (int odd : {7, 5, 3})
    for (; points % odd == 0; points /= odd) out.push_back(odd);
  int twos = 0;
  for (; points % 2 == 0; points /= 2) ++twos;
  if (points != 1) return {};
  if (twos == 1) out.push_back(2);
  if (twos % 3 == 2) out.push_back(4);
  if (twos % 3 == 1 && twos > 1) out.push_back(4), out.push_back(4);
  for (int left = twos % 3 == 1 ? twos - 4 : twos % 3 == 2 ? twos - 2 : twos; left >= 3; left -= 3) out.push_back(8);
  if (out.size() < 2) return {};
  std::sort(out.begin(), out.end());
  std::rotate(out.begin(), out.end() - 1, out.end());
  int last = static_cast<int>(out.size()) - 1;
  for (int i = last; i > 0; --i)
    if (out[i] == 8 || (out[i] == 4 && out[last] != 8)) {
      std::swap(out[i], out[last]);
      if (out[last] == 8) break;
    }
  if (out[last] == 2) std::swap(out[last], out[last - 1]);
  if (out[0] == 2) std::swap(out[0], out[1]);
  return out;
}

struct Size {
  int64_t points;
  double cycles;
};

// Every number of points that has only the factors 2, 3, 5 and 7, in their order.
inline const std::vector<Size>& sizes() {
  static const std::vector<Size> all = [] {
    std::vector<Size> out;
    for (int64_t seven = 1; seven <= most_points; seven *= 7)
      for (int64_t five = seven; five <= most_points; five *= 5)
        for (int64_t three = five; three <= most_points; three *= 3)
          for (int64_t points = three; points <= most_points; points *= 2) {
            double cycles = transform_cycles;
            for (int radix : factors(points)) cycles += level_cycles(radix);
            if (points >= fewest_points && cycles > transform_cycles) out.push_back({points, cycles * points});
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

  explicit Tables(int64_t points) {
    const std::vector<int> radices = factors(points);
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
    const double angle = 1.57079632679489661923 * static_cast<double>(4 * part - quarters * whole) / static_cast<double>(whole);
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
  if (!tables) tables = std::make_unique<Tables<S>>(points);
  return &tables->plan;
}

}  // namespace adder
