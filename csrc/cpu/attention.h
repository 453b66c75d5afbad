// What attention's two passes share: the register-blocked product, who sees whom, rows in and out, 2^x.
#pragma once

#include <algorithm>
#include <limits>

#include "cpu/gemm_core.h"
#include "cpu/simd_math.h"
#include "ops/attention.h"

namespace drupe::cpu {

inline constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) {
  return ceil_div(a, b) * b;
}

// Register tile and the layout of a left operand: rows of at most kDepth at a stride that spreads over cache sets.
template <Isa I, class T>
struct AttentionTile {
  using V = Vec<T, I>;
  static constexpr int kRows = GemmTile<I, T>::kRows;
  static constexpr int kVectors = GemmTile<I, T>::kVectors;
  static constexpr int kCols = GemmTile<I, T>::kCols;
  static constexpr std::int64_t kDepth = 1024 / sizeof(T);
  static constexpr std::int64_t kStride = kDepth + 64 / sizeof(T);
};

// c[i][j] (+)= sum over k of a[i][k] b[k][j] for one register tile. a's element (i, k) is at a[i * kStride + k], or
// at a[k * kStride + i] with kTransposed; b and c have rows of any stride.
template <Isa I, class T, bool kTransposed, int kRows>
[[gnu::noinline]] void attention_microkernel(std::int64_t depth, const T* a, const T* b, std::int64_t b_row, T* c,
                                             std::int64_t c_row, bool accumulate) {
  using Tile = AttentionTile<I, T>;
  using V = Vec<T, I>;
  V sum[kRows][Tile::kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Tile::kVectors; ++j) {
      sum[i][j] = accumulate ? V::load(c + i * c_row + j * V::kLanes) : V::zero();
    }
  }
  for (std::int64_t k = 0; k < depth; ++k, b += b_row) {
    V row[Tile::kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < Tile::kVectors; ++j) row[j] = V::load(b + j * V::kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const V left = V::set(kTransposed ? a[k * Tile::kStride + i] : a[i * Tile::kStride + k]);
#pragma GCC unroll 4
      for (int j = 0; j < Tile::kVectors; ++j) sum[i][j] = fma(left, row[j], sum[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Tile::kVectors; ++j) sum[i][j].store(c + i * c_row + j * V::kLanes);
  }
}

// Picks the microkernel for 1 <= rows <= kRows.
template <Isa I, class T, bool kTransposed = false, int kRows = AttentionTile<I, T>::kRows>
DRUPE_INLINE void multiply_tile(int rows, std::int64_t depth, const T* a, const T* b, std::int64_t b_row, T* c,
                                std::int64_t c_row, bool accumulate) {
  if (rows == kRows) {
    attention_microkernel<I, T, kTransposed, kRows>(depth, a, b, b_row, c, c_row, accumulate);
  } else if constexpr (kRows > 1) {
    multiply_tile<I, T, kTransposed, kRows - 1>(rows, depth, a, b, b_row, c, c_row, accumulate);
  }
}

// The same where the depth spans several slices of the left operand, `slice` elements apart.
template <Isa I, class T>
DRUPE_INLINE void multiply_slices(int rows, std::int64_t depth, const T* a, std::int64_t slice, const T* b,
                                  std::int64_t b_row, T* c, std::int64_t c_row) {
  constexpr std::int64_t kDepth = AttentionTile<I, T>::kDepth;
  for (std::int64_t k = 0; k == 0 || k < depth; k += kDepth) {  // depth 0 gives zeros
    multiply_tile<I, T>(rows, std::min(kDepth, depth - k), a + k / kDepth * slice, b + k * b_row, b_row, c, c_row,
                        k > 0);
  }
}

// 2^x for x <= 127; 0 below -126, where subnormal results would be slow; NaN stays NaN.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> exp2(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (std::is_same_v<T, double>) {
    return map_lanes(x, [](double a) { return std::exp2(a); });
  } else {
    const V least = V::set(-126.f);
    const V clamped = max(least, x);
    const V n = round(clamped);
    // Minimax on [-1/2, 1/2]: relative error 2e-9.
    const V p = polynomial(clamped - n, 1.f, 0.693147203f, 0.24022648f, 0.0555033237f, 0.00961842321f, 0.00133989058f,
                           0.000153574969f);
    return select(x < least, V::zero(), ldexp(p, n));
  }
}

// The half-open range of keys that query i sees, and of queries that key j is seen by. Both bounds never decrease
// along i or j.
struct Range {
  std::int64_t begin, end;
  DRUPE_INLINE bool empty() const { return begin >= end; }
};

template <Isa>
DRUPE_INLINE Range keys_of(const AttentionArgs& args, std::int64_t b, std::int64_t i) {
  if (args.query_lengths && i >= args.query_lengths[b]) return {0, 0};
  const std::int64_t position = i + args.Skv - args.Sq;
  const std::int64_t length = args.lengths ? args.lengths[b] : args.Skv;
  return {std::max<std::int64_t>(0, position - args.left), std::min(length, position + args.right + 1)};
}

template <Isa>
DRUPE_INLINE Range queries_of(const AttentionArgs& args, std::int64_t b, std::int64_t j) {
  if (args.lengths && j >= args.lengths[b]) return {0, 0};
  const std::int64_t position = j - args.Skv + args.Sq;
  const std::int64_t length = args.query_lengths ? args.query_lengths[b] : args.Sq;
  return {std::max<std::int64_t>(0, position - args.right), std::min(length, position + args.left + 1)};
}

template <class S>
DRUPE_INLINE S* locate(const AttentionOperand& operand, std::int64_t b, std::int64_t h, std::int64_t s) {
  return static_cast<S*>(operand.data) + b * operand.batch + h * operand.head + s * operand.row;
}

// to[0, count) = factor * from, and zeros up to `width`.
template <Isa I, class S, class T>
DRUPE_INLINE void load_row(const S* from, std::int64_t count, T factor, T* to, std::int64_t width) {
  using V = Vec<T, I>;
  const V f = V::set(factor);
  std::int64_t j = 0;
  for (; j + V::kLanes <= count; j += V::kLanes) (f * V::load(from + j)).store(to + j);
  if (j < count) {
    const V rest = f * V::load(from + j, static_cast<int>(count - j));
    rest.store(to + j, static_cast<int>(std::min<std::int64_t>(V::kLanes, width - j)));
    j += V::kLanes;
  }
  for (; j < width; j += V::kLanes)
    V::zero().store(to + j, static_cast<int>(std::min<std::int64_t>(V::kLanes, width - j)));
}

// to[0, count) = factor * from.
template <Isa I, class S, class T>
DRUPE_INLINE void store_row(const T* from, std::int64_t count, T factor, S* to) {
  using V = Vec<T, I>;
  const V f = V::set(factor);
  std::int64_t j = 0;
  for (; j + V::kLanes <= count; j += V::kLanes) (f * V::load(from + j)).store(to + j);
  if (j < count) {
    const int rest = static_cast<int>(count - j);
    (f * V::load(from + j, rest)).store(to + j, rest);
  }
}

// Asks for the cache lines of a row: rows lie too far apart for the hardware to guess the next one.
template <Isa, class S>
DRUPE_INLINE void prefetch_row(const S* row, std::int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(row);
  const std::int64_t size = count * static_cast<std::int64_t>(sizeof(S));
  for (std::int64_t at = 0; at < size; at += 64) __builtin_prefetch(bytes + at, 0, 2);
}

template <Isa I, class T>
DRUPE_INLINE void fill(T* to, std::int64_t begin, std::int64_t end, T value) {
  for (std::int64_t j = begin; j < end; ++j) to[j] = value;
}

}  // namespace drupe::cpu
