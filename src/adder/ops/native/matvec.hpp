// Products of a weight matrix with a few vectors: y = W x for rows first .. last - 1. Every y is summed over the columns in
// an order that depends on the kind of the weights alone, so neither the number of vectors nor of threads changes a bit.
#pragma once
#include "kernel.hpp"
#include "weights.hpp"

namespace adder::ADDER_ISA {

// Vectors in the form that a kind of weights multiplies.
struct Activations {
  Weights kind;
  int64_t count, columns, width;  // vectors, numbers in each, and in each with the zeros behind it
  float* x;                       // (count, width) for float32, and for bfloat16, rounded
  uint16_t* halves;               // (count, width) for bfloat16
  int8_t* codes;                  // (count, width) for int8 and int4
  float* scales;                  // (count, width / 32)
  int32_t* sums;                  // (count, width / 32): of the codes

  Activations(Arena& arena, const Matrix& weight, int64_t count)
      : kind(weight.kind), count(count), columns(weight.columns), width(round_up(columns, group_columns)) {
    const bool dense = kind == Weights::float32 || kind == Weights::bfloat16;
    x = arena.take<float>(dense ? count * width : 0);
    halves = arena.take<uint16_t>(kind == Weights::bfloat16 ? count * width : 0);
    codes = arena.take<int8_t>(dense ? 0 : count * width);
    scales = arena.take<float>(dense ? 0 : count * groups());
    sums = arena.take<int32_t>(dense ? 0 : count * groups());
  }
  int64_t groups() const { return width / group_columns; }
  Activations slice(int64_t first, int64_t last) const {
    Activations part = *this;
    part.count = last - first;
    part.x += first * width, part.halves += first * width, part.codes += first * width;
    part.scales += first * groups(), part.sums += first * groups();
    return part;
  }
};

// scale = max |x| / 127 and codes = rint(x (127 / max |x|)) of 32 numbers. Below 1e-30 they count as zeros; a NaN or an
// infinity among them makes the scale NaN, and so whatever it is multiplied with.
inline void quantize_group(const float* x, int8_t* codes, float& scale, int32_t& sum_of_codes) {
  typedef int8_t Bytes __attribute__((vector_size(ADDER_VECTOR_BYTES / 4)));
  Vec<float> most = {}, zeros = {};
  for (int64_t c = 0; c < group_columns; c += lanes<float>) {
    const Vec<float> value = load(x + c), size = value < 0 ? -value : value;
    most = size > most ? size : most;
    zeros += value * 0.0f;
  }
  float each[lanes<float>], largest = 0;
  std::memcpy(each, &most, sizeof(most));
  for (float one : each) largest = one > largest ? one : largest;
  const bool counts = largest >= 1e-30f;
  const float inverse = counts ? 127 / largest : 0;
  Ints<float> sums = {};
  for (int64_t c = 0; c < group_columns; c += lanes<float>) {
    const Ints<float> whole = __builtin_convertvector(nearest<float>(load(x + c) * inverse), Ints<float>);
    const Bytes bytes = __builtin_convertvector(whole, Bytes);
    std::memcpy(codes + c, &bytes, sizeof(bytes));
    sums += whole;
  }
  sum_of_codes = 0;
  for (int i = 0; i < lanes<float>; ++i) sum_of_codes += sums[i];
  scale = (counts ? largest / 127 : 0) + sum<float>(zeros);
}

// Brings a vector to that form, as the one with the number m.
template <class T>
inline void prepare(Activations& a, int64_t m, const T* from) {
  for (int64_t c = 0; c < a.width; c += group_columns) {
    float x[group_columns];
    for (int64_t i = 0; i < group_columns; i += lanes<float>) {
      const int64_t left = a.columns - c - i;
      const Vec<float> value = left >= lanes<float> ? load(from + c + i) : left > 0 ? load(from + c + i, int(left)) : Vec<float>{};
      store(x + i, value);
    }
    const int64_t at = m * a.width + c, group = m * a.groups() + c / group_columns;
    if (a.kind == Weights::int8 || a.kind == Weights::int4) {
      quantize_group(x, a.codes + at, a.scales[group], a.sums[group]);
      continue;
    }
    for (int64_t i = 0; i < group_columns; i += lanes<float>) {
      Vec<float> value = load(x + i);
      if (a.kind == Weights::bfloat16) {
        const Halves halves = narrow(value);
        std::memcpy(a.halves + at + i, &halves, sizeof(halves));
        value = widen(halves);
      }
      store(a.x + at + i, value);
    }
  }
}

// Rows that will be multiplied later, to be asked of memory now: where several vectors share a row, arithmetic hides the time
// that this takes. Few lines at a time, or they would be in the way of those that are needed at once.
template <class T>
struct Ahead {
  const T* rows;
  int64_t count, columns;
  void ask(int64_t c) const {
    for (int64_t r = 0; r < count; ++r) __builtin_prefetch(rows + r * columns + c);
  }
};

// R rows, which start `apart` from each other, times M vectors, a register for each sum, whose lanes are not added up yet:
// to[r * M + m].
template <class T, int R, int M>
inline void dot_tile(const T* w, int64_t apart, const Ahead<T>& ahead, int64_t columns, const float* x, int64_t width,
                     Vec<float>* to) {
  constexpr int L = lanes<float>;
  Vec<float> total[R][M] = {};
  int64_t c = 0;
  for (; c + L <= columns; c += L) {
    Vec<float> at[M];
    for (int m = 0; m < M; ++m) at[m] = load(x + m * width + c);
    if constexpr (M > 1) ahead.ask(c);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec<float> weight = load(w + r * apart + c);
      for (int m = 0; m < M; ++m) total[r][m] += weight * at[m];
    }
  }
  if (c < columns)
    for (int r = 0; r < R; ++r) {
      const Vec<float> weight = load(w + r * apart + c, static_cast<int>(columns - c));
      for (int m = 0; m < M; ++m) total[r][m] += weight * load(x + m * width + c);
    }
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) to[r * M + m] = total[r][m];
}

#if defined(__AVX512F__)
template <int R, int M>
__attribute__((target("avx512bf16"))) inline void dot_tile_bf16(const uint16_t* w, int64_t apart,
                                                                 const Ahead<bfloat16>& ahead, int64_t columns,
                                                                 const uint16_t* x, int64_t width, Vec<float>* to) {
  __m512 total[R][M];
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) total[r][m] = _mm512_setzero_ps();
  int64_t c = 0;
  for (; c + 32 <= columns; c += 32) {
    __m512i at[M];
    for (int m = 0; m < M; ++m) at[m] = _mm512_loadu_si512(x + m * width + c);
    if constexpr (M > 1) ahead.ask(c);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m512i weight = _mm512_loadu_si512(w + r * apart + c);
      for (int m = 0; m < M; ++m) total[r][m] = _mm512_dpbf16_ps(total[r][m], (__m512bh)weight, (__m512bh)at[m]);
    }
  }
  if (c < columns) {
    const __mmask32 rest = (__mmask32(1) << (columns - c)) - 1;
    for (int r = 0; r < R; ++r) {
      const __m512i weight = _mm512_maskz_loadu_epi16(rest, w + r * apart + c);
      for (int m = 0; m < M; ++m)
        total[r][m] = _mm512_dpbf16_ps(total[r][m], (__m512bh)weight, (__m512bh)_mm512_loadu_si512(x + m * width + c));
    }
  }
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) to[r * M + m] = (Vec<float>)total[r][m];
}
#endif

// Rows r, r + apart, ... r + (R - 1) apart.
template <class T, int R, int M>
inline void dense_tile(const Matrix& w, int64_t r, int64_t apart, const Activations& a, int64_t m, Vec<float>* to,
                       const Ahead<T>& ahead = {}) {
  const T* from = static_cast<const T*>(w.data) + r * w.columns;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 2)
    if (has_bf16_dot())
      return dot_tile_bf16<R, M>(reinterpret_cast<const uint16_t*>(from), apart * w.columns, ahead, w.columns,
                                 a.halves + m * a.width, a.width, to);
#endif
  dot_tile<T, R, M>(from, apart * w.columns, ahead, w.columns, a.x + m * a.width, a.width, to);
}

// Four vectors share what is loaded of four rows. For fewer memory decides: it is fastest read in four places at once, each row
// after row, since every page waits for its address. Lanes are added up for sixteen sums at once, in the same order whichever
// sums they are.
template <class T>
inline void dense_rows(const Matrix& w, int64_t first, int64_t last, const Activations& a, float* y, int64_t y_row) {
  constexpr int many = 16, places = 4;
  float each[many];
  int64_t r = first;
  const int64_t a_pass = a.count < 4 ? 0 : ceil_div(4, a.count / 4);  // rows to ask for in each pass over these
  for (; a.count >= 4 && r + 4 <= last; r += 4) {
    int64_t m = 0, asked = r + 4;
    for (; m + 4 <= a.count; m += 4, asked += a_pass) {
      Vec<float> total[many];
      dense_tile<T, 4, 4>(w, r, 1, a, m, total,
                          {static_cast<const T*>(w.data) + asked * w.columns,
                           smaller(a_pass, smaller(last, r + 8) - asked), w.columns});
      sums<float>(total, many, each);
      for (int i = 0; i < many; ++i) y[(m + i % 4) * y_row + (r - first) + i / 4] = each[i];
    }
    for (; m < a.count; ++m) {
      Vec<float> total[many] = {};
      dense_tile<T, 4, 1>(w, r, 1, a, m, total);
      sums<float>(total, many, each);
      for (int i = 0; i < 4; ++i) y[m * y_row + (r - first) + i] = each[i];
    }
  }
  const int64_t apart = (last - r) / places, end = r + apart;
  for (; r < end; r += places)
    for (int64_t m = 0; m < a.count; ++m) {
      Vec<float> total[many] = {};
      const int64_t rows = smaller(places, end - r);
      for (int64_t i = 0; i < rows; ++i) dense_tile<T, places, 1>(w, r + i, apart, a, m, total + i * places);
      sums<float>(total, many, each);
      for (int64_t i = 0; i < rows; ++i)
        for (int place = 0; place < places; ++place) y[m * y_row + (r + i + place * apart - first)] = each[i * places + place];
    }
  for (r = end + (places - 1) * apart; r < last; ++r)
    for (int64_t m = 0; m < a.count; ++m) {
      Vec<float> total[many] = {};
      dense_tile<T, 1, 1>(w, r, 1, a, m, total);
      sums<float>(total, many, each);
      y[m * y_row + (r - first)] = each[0];
    }
}

// The bytes of one tile and group: 4 columns of 16 rows in 64 bytes; int4 holds 4 columns more in the high halves.
template <bool four>
constexpr int64_t group_bytes = (four ? 4 : 8) * 64;

// sum[m][i] = codes of row i . codes of vector m, over one group, exact; the weights' codes count from 128 or 8.
template <bool four, int M>
inline void group_product(const uint8_t* w, const int8_t* x, int64_t width, int32_t (*sum)[tile_rows]) {
  for (int64_t q = 0; q < (four ? 4 : 8); ++q)
    for (int half = 0; half < (four ? 2 : 1); ++half) {
      int16_t part[tile_rows * 4];
      for (int i = 0; i < tile_rows * 4; ++i) part[i] = four ? (w[q * 64 + i] >> (4 * half)) & 15 : w[q * 64 + i];
      for (int m = 0; m < M; ++m) {
        const int8_t* at = x + m * width + q * 4 + half * 16;
#if defined(__AVX2__)
        int16_t four_times[16];
        for (int i = 0; i < 16; ++i) four_times[i] = at[i % 4];
        const __m256i by = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(four_times));
        for (int i = 0; i < tile_rows; i += 8) {  // eight rows: two registers of pairs, folded
          const __m256i low = _mm256_madd_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(part + 4 * i)), by);
          const __m256i high =
              _mm256_madd_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(part + 4 * i + 16)), by);
          const __m256i rows = _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xd8);
          __m256i* to = reinterpret_cast<__m256i*>(sum[m] + i);
          _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), rows));
        }
#else
        for (int i = 0; i < tile_rows; ++i)
          for (int j = 0; j < 4; ++j) sum[m][i] += int32_t(part[4 * i + j]) * at[j];
#endif
      }
    }
}

template <bool four, int M>
inline void quantized_tile(const Matrix& w, int64_t tile, const Activations& a, int64_t m0, float* y, int64_t y_row) {
  const int64_t groups = a.groups();
  const uint8_t* codes = static_cast<const uint8_t*>(w.data) + tile * groups * group_bytes<four>;
  const bfloat16* scales = static_cast<const bfloat16*>(w.scales) + tile * groups * tile_rows;
  float total[M][tile_rows] = {};
  for (int64_t g = 0; g < groups; ++g, codes += group_bytes<four>, scales += tile_rows) {
    int32_t sum[M][tile_rows];
    for (int m = 0; m < M; ++m)
      for (int i = 0; i < tile_rows; ++i) sum[m][i] = -(four ? 8 : 128) * a.sums[(m0 + m) * groups + g];
    group_product<four, M>(codes, a.codes + m0 * a.width + g * group_columns, a.width, sum);
    for (int m = 0; m < M; ++m) {
      const float by = a.scales[(m0 + m) * groups + g];
      for (int i = 0; i < tile_rows; ++i) total[m][i] += scalar(scales[i]) * by * float(sum[m][i]);
    }
  }
  for (int m = 0; m < M; ++m) std::memcpy(y + m * y_row, total[m], sizeof(total[m]));
}

#if defined(__AVX512F__)
// The same in registers: 4 columns of 16 rows are one instruction for each vector.
template <bool four, int M>
__attribute__((target("avx512vnni"))) inline void quantized_tile_vnni(const Matrix& w, int64_t tile, const Activations& a,
                                                                       int64_t m0, float* y, int64_t y_row) {
  const int64_t groups = a.groups();
  const uint8_t* codes = static_cast<const uint8_t*>(w.data) + tile * groups * group_bytes<four>;
  const uint16_t* scales = static_cast<const uint16_t*>(w.scales) + tile * groups * tile_rows;
  const __m512i low_half = _mm512_set1_epi8(15);
  __m512 total[M];
  for (int m = 0; m < M; ++m) total[m] = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; ++g, codes += group_bytes<four>, scales += tile_rows) {
    const int8_t* x = a.codes + m0 * a.width + g * group_columns;
    __m512i sum[M];
    for (int m = 0; m < M; ++m) sum[m] = _mm512_set1_epi32(-(four ? 8 : 128) * a.sums[(m0 + m) * groups + g]);
#pragma GCC unroll 8
    for (int64_t q = 0; q < (four ? 4 : 8); ++q) {
      const __m512i both = _mm512_loadu_si512(codes + q * 64);
      if (M == 1) __builtin_prefetch(codes + q * 64 + 1024);
      const __m512i low = four ? _mm512_and_si512(both, low_half) : both;
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_half);
      for (int m = 0; m < M; ++m) {
        int32_t at;
        std::memcpy(&at, x + m * a.width + q * 4, 4);
        sum[m] = _mm512_dpbusd_epi32(sum[m], low, _mm512_set1_epi32(at));
        if constexpr (four) {
          std::memcpy(&at, x + m * a.width + 16 + q * 4, 4);
          sum[m] = _mm512_dpbusd_epi32(sum[m], high, _mm512_set1_epi32(at));
        }
      }
    }
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales));
    const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    for (int m = 0; m < M; ++m) {
      const __m512 by = _mm512_mul_ps(scale, _mm512_set1_ps(a.scales[(m0 + m) * groups + g]));
      total[m] = _mm512_fmadd_ps(by, _mm512_cvtepi32_ps(sum[m]), total[m]);
    }
  }
  for (int m = 0; m < M; ++m) _mm512_storeu_ps(y + m * y_row, total[m]);
}
#endif

template <bool four, int M>
inline void one_quantized_tile(const Matrix& w, int64_t tile, const Activations& a, int64_t m, float* y, int64_t y_row) {
#if defined(__AVX512F__)
  if (has_vnni()) return quantized_tile_vnni<four, M>(w, tile, a, m, y, y_row);
#endif
  quantized_tile<four, M>(w, tile, a, m, y, y_row);
}

template <bool four>
inline void quantized_rows(const Matrix& w, int64_t first, int64_t last, const Activations& a, float* y, int64_t y_row) {
  constexpr int M = 8;
  float part[M][tile_rows];
  for (int64_t tile = first / tile_rows; tile * tile_rows < last; ++tile) {
    const int64_t from = tile * tile_rows, begin = from < first ? first : from, end = smaller(last, from + tile_rows);
    for (int64_t m = 0; m < a.count;) {
      const int64_t many = a.count - m >= M ? M : a.count - m >= 4 ? 4 : 1;
      if (many == M)
        one_quantized_tile<four, M>(w, tile, a, m, part[0], tile_rows);
      else if (many == 4)
        one_quantized_tile<four, 4>(w, tile, a, m, part[0], tile_rows);
      else
        one_quantized_tile<four, 1>(w, tile, a, m, part[0], tile_rows);
      for (int64_t i = 0; i < many; ++i)
        for (int64_t r = begin; r < end; ++r) y[(m + i) * y_row + (r - first)] = part[i][r - from];
      m += many;
    }
  }
}

// y[m * y_row + r - first] = W[r] . x[m] for rows first <= r < last and all vectors, which prepare() has seen.
inline void multiply_rows(const Matrix& w, int64_t first, int64_t last, const Activations& a, float* y, int64_t y_row) {
  switch (w.kind) {
    case Weights::float32: return dense_rows<float>(w, first, last, a, y, y_row);
    case Weights::bfloat16: return dense_rows<bfloat16>(w, first, last, a, y, y_row);
    case Weights::int8: return quantized_rows<false>(w, first, last, a, y, y_row);
    case Weights::int4: return quantized_rows<true>(w, first, last, a, y, y_row);
  }
}

}  // namespace adder::ADDER_ISA
