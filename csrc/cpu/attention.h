// What attention's two passes share: the register-blocked product, who sees whom, rows in and out, 2^x.
#pragma once

#include <algorithm>
#include <limits>

#include "cpu/gemm_core.h"
#include "cpu/lanes.h"
#include "cpu/simd_mask.h"
#include "cpu/simd_math.h"
#include "cpu/simd_transpose.h"
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
  static constexpr int kMostRows = kReducedRows;  // of a tile, or of a decoding step
  static constexpr std::int64_t kDepth = 1024 / sizeof(T);
  static constexpr std::int64_t kStride = kDepth + 64 / sizeof(T);
};

// Asks for the cache lines of a row: rows lie too far apart for the hardware to guess the next one.
template <Isa, class S>
DRUPE_INLINE void prefetch_row(const S* row, std::int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(row);
  const std::int64_t size = count * static_cast<std::int64_t>(sizeof(S));
  for (std::int64_t at = 0; at < size; at += 64) __builtin_prefetch(bytes + at, 0, 2);
}

// Memory that will be needed soon, in pieces of kLines cache lines of a row. A product asks for a piece every kDepth
// steps, so that the misses lie under arithmetic and there are never more of them than the processor can track.
template <Isa>
class Ahead {
 public:
  static constexpr std::int64_t kDepth = 4;

  template <class S>
  DRUPE_INLINE void add_rows(const S* first, std::int64_t stride, std::int64_t rows, std::int64_t width) {
    constexpr auto kItem = static_cast<std::int64_t>(sizeof(S));
    const std::int64_t pieces = ceil_div(width * kItem, kPieceBytes);
    const std::int64_t fitting = pieces > 0 ? std::min(rows, room_ / pieces) : 0;
    if (fitting <= 0 || end_ == regions_ + kRegions) return;
    room_ -= fitting * pieces;
    *end_++ = {reinterpret_cast<const char*>(first), stride * kItem, fitting, pieces * kPieceBytes};
  }

  DRUPE_INLINE void step() {
    if (region_ == end_) return;
    const char* piece = region_->row + at_;
#pragma GCC unroll 4
    for (std::int64_t i = 0; i < kPieceBytes; i += 64) __builtin_prefetch(piece + i, 0, 2);
    at_ += kPieceBytes;
    if (at_ < region_->bytes) return;
    at_ = 0;
    region_->row += region_->stride;
    if (--region_->rows == 0) ++region_;
  }

 private:
  struct Region {
    const char* row;
    std::int64_t stride, rows, bytes;
  };
  static constexpr std::int64_t kPieceBytes = 256, kRegions = 16;
  Region regions_[kRegions];
  Region *region_ = regions_, *end_ = regions_;
  std::int64_t at_ = 0, room_ = 1024;  // pieces: more would evict what is in use
};

// Where a product goes: c[i][j] = factors[i] * (the product + c[i][j] where `accumulate`), without factors as it is.
template <class T>
struct Sums {
  T* c = nullptr;
  std::int64_t row = 0;
  bool accumulate = false;
  const T* factors = nullptr;
};

// The sum over k of a[i][k] b[k][j] for one register tile, kVectors wide. a's element (i, k) is at a[i * kStride + k],
// or at a[k * kStride + i] with kTransposed; b has rows of any stride.
template <Isa I, class T, bool kTransposed, int kVectors, int kRows>
[[gnu::noinline]] void attention_microkernel(std::int64_t depth, const T* a, const T* b, std::int64_t b_row,
                                             const Sums<T>& to, Ahead<I>& ahead) {
  using Tile = AttentionTile<I, T>;
  using V = Vec<T, I>;
  V sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      sum[i][j] = to.accumulate ? V::load(to.c + i * to.row + j * V::kLanes) : V::zero();
    }
  }
  for (std::int64_t k = 0; k < depth;) {
    ahead.step();
    for (const std::int64_t pause = std::min(depth, k + Ahead<I>::kDepth); k < pause; ++k, b += b_row) {
      V row[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) row[j] = V::load(b + j * V::kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const V left = V::set(kTransposed ? a[k * Tile::kStride + i] : a[i * Tile::kStride + k]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sum[i][j] = fma(left, row[j], sum[i][j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    const V factor = V::set(to.factors ? to.factors[i] : T(1));
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) (factor * sum[i][j]).store(to.c + i * to.row + j * V::kLanes);
  }
}

// Picks the microkernel for 1 <= rows <= kRows.
template <Isa I, class T, bool kTransposed = false, int kVectors = AttentionTile<I, T>::kVectors,
          int kRows = AttentionTile<I, T>::kRows>
DRUPE_INLINE void multiply_tile(int rows, std::int64_t depth, const T* a, const T* b, std::int64_t b_row,
                                const Sums<T>& to, Ahead<I>& ahead) {
  if (rows == kRows) {
    attention_microkernel<I, T, kTransposed, kVectors, kRows>(depth, a, b, b_row, to, ahead);
  } else if constexpr (kRows > 1) {
    multiply_tile<I, T, kTransposed, kVectors, kRows - 1>(rows, depth, a, b, b_row, to, ahead);
  }
}

// The same where the depth spans several slices of the left operand, `slice` elements apart, and b is a panel.
template <Isa I, class T, int kVectors>
DRUPE_INLINE void multiply_slices(int rows, std::int64_t depth, const T* a, std::int64_t slice, const T* panel, T* c,
                                  Ahead<I>& ahead) {
  using Tile = AttentionTile<I, T>;
  for (std::int64_t k = 0; k == 0 || k < depth; k += Tile::kDepth) {  // depth 0 gives zeros
    multiply_tile<I, T, false, kVectors>(rows, std::min(Tile::kDepth, depth - k), a + k / Tile::kDepth * slice,
                                         panel + k * Tile::kCols, Tile::kCols, Sums<T>{c, Tile::kStride, k > 0}, ahead);
  }
}

// The columns [begin, end) of the product with panels of kCols columns, to rows of c at kStride: by whole panels, or by
// half ones at the ends where those will do.
template <Isa I, class T>
DRUPE_INLINE void multiply_panels(int rows, std::int64_t depth, const T* a, std::int64_t slice, const T* panels,
                                  std::int64_t begin, std::int64_t end, T* c, Ahead<I>& ahead) {
  using Tile = AttentionTile<I, T>;
  constexpr std::int64_t kCols = Tile::kCols, kHalf = kCols / 2;
  for (std::int64_t j = begin / kCols * kCols; j < end; j += kCols) {
    const bool upper = begin >= j + kHalf, lower = end <= j + kHalf;
    const T* panel = panels + j * depth;
    if (upper || lower) {
      const std::int64_t offset = upper ? kHalf : 0;
      multiply_slices<I, T, Tile::kVectors / 2>(rows, depth, a, slice, panel + offset, c + j + offset, ahead);
    } else {
      multiply_slices<I, T, Tile::kVectors>(rows, depth, a, slice, panel, c + j, ahead);
    }
  }
}

// 2^x for x <= 127; 0 below -126, where subnormal results would be slow; NaN stays NaN.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> exp2(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (std::is_same_v<T, double>) {
    return map_lanes(x, [](double a) { return std::exp2(a); });
  } else {
    const V n = round(x);
    // Minimax on [-1/2, 1/2]: relative error 2e-9.
    const V p = polynomial(x - n, 1.f, 0.693147203f, 0.24022648f, 0.0555033237f, 0.00961842321f, 0.00133989058f,
                           0.000153574969f);
    return ldexp_where(~(x < V::set(-126.f)), p, n);
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
  for_vectors<I, T>(count, [&](std::int64_t j, auto lanes) { store(f * load<V>(from + j, lanes), to + j, lanes); });
}

// Rows of `depth` elements as the columns of a panel: panel[d * kCols + j] = from[j * row + d] for j < cols, 0 beyond.
template <Isa I, class S, class T>
void pack_panel(const S* from, std::int64_t row, std::int64_t cols, std::int64_t depth, T* panel) {
  constexpr int kCols = AttentionTile<I, T>::kCols;
  if constexpr (std::is_same_v<S, T> && kCols % Transpose<I, T>::kSide == 0) {
    constexpr int kSide = Transpose<I, T>::kSide;
    if (cols == kCols && depth % kSide == 0) {
      for (std::int64_t d = 0; d < depth; d += kSide) {
        for (int j = 0; j < kCols; j += kSide) {
          Transpose<I, T>::block(from + j * row + d, row, panel + d * kCols + j, kCols);
        }
      }
      return;
    }
  }
  StridedMatrix<I, S>{from, row, 1}.pack_cols(panel, 0, cols, 0, depth);
}

template <Isa I, class T>
DRUPE_INLINE void fill(T* to, std::int64_t begin, std::int64_t end, T value) {
  for (std::int64_t j = begin; j < end; ++j) to[j] = value;
}

// One query row of the task's block.
template <class S>
struct Row {
  const S* q;
  const S* bias;
  S* y;
  Range keys;
};

// The running softmax of a block's rows, in units of log 2.
template <class T>
struct Running {
  T* maximum;
  T* sum;
};

// logits[begin, end) += log2(e) bias[begin, end)
template <Isa I, class S, class T>
void add_bias(T* logits, const S* bias, std::int64_t stride, std::int64_t begin, std::int64_t end) {
  using V = Vec<T, I>;
  const V unit = V::set(static_cast<T>(kLog2E));
  if (stride != 1) {
    for (std::int64_t j = begin; j < end; ++j) {
      logits[j] += static_cast<T>(kLog2E) * static_cast<T>(bias[j * stride]);
    }
    return;
  }
  for_vectors<I, T>(end - begin, [&](std::int64_t i, auto lanes) {
    T* to = logits + begin + i;
    store(fma(unit, load<V>(bias + begin + i, lanes), load<V>(to, lanes)), to, lanes);
  });
}

// The lane-wise maximum of whole vectors.
template <Isa I, class T>
DRUPE_INLINE Vec<T, I> maximum_of(const T* logits, std::int64_t begin, std::int64_t end) {
  using V = Vec<T, I>;
  V top0 = V::load(logits + begin), top1 = top0;
  std::int64_t j = begin + V::kLanes;
  for (; j + 2 * V::kLanes <= end; j += 2 * V::kLanes) {
    top0 = max(top0, V::load(logits + j));
    top1 = max(top1, V::load(logits + j + V::kLanes));
  }
  if (j < end) top0 = max(top0, V::load(logits + j));
  return max(top0, top1);
}

// Whole vectors become 2^(logit - shift); returns their lane-wise sum.
template <Isa I, class T>
DRUPE_INLINE Vec<T, I> exponentiate(T* logits, std::int64_t begin, std::int64_t end, T shift) {
  using V = Vec<T, I>;
  const V by = V::set(shift);
  V sum0 = V::zero(), sum1 = V::zero();
  std::int64_t j = begin;
  for (; j + 2 * V::kLanes <= end; j += 2 * V::kLanes) {
    const V e0 = exp2(V::load(logits + j) - by), e1 = exp2(V::load(logits + j + V::kLanes) - by);
    e0.store(logits + j);
    e1.store(logits + j + V::kLanes);
    sum0 = sum0 + e0;
    sum1 = sum1 + e1;
  }
  if (j < end) {
    const V e = exp2(V::load(logits + j) - by);
    e.store(logits + j);
    sum0 = sum0 + e;
  }
  return sum0 + sum1;
}

// The query rows [row0, row0 + count) of the heads that share a key/value head.
template <Isa I, class S>
void describe(const AttentionArgs& args, std::int64_t head, std::int64_t row0, std::int64_t count, Row<S>* rows) {
  const AttentionArgs a = args;  // a copy, which the stores to `rows` cannot change
  const std::int64_t b = head / a.Hkv;
  std::int64_t h = head % a.Hkv * (a.Hq / a.Hkv) + row0 / a.Sq, i = row0 % a.Sq;
  for (std::int64_t r = 0; r < count; i = 0, ++h) {
    const S* q = locate<const S>(a.q, b, h, i);
    S* y = locate<S>(a.y, b, h, i);
    const S* bias = static_cast<const S*>(a.bias);
    if (bias) bias += b * a.bias_batch + h * a.bias_head + i * a.bias_row;
    for (const std::int64_t last = std::min(count, r + a.Sq - i); r < last; ++r, ++i) {
      rows[r] = {.q = q, .bias = bias, .y = y, .keys = keys_of<I>(a, b, i)};
      q += a.q.row, y += a.y.row;
      if (bias) bias += a.bias_row;
    }
  }
}

// The logits [begin, end) of the keys from key0 on, one row per kStride, to probabilities times 2^maximum; zeros where
// a row does not see what others do. `sums`, if given what earlier keys gave, shrinks to the new maximum. In phases
// over the rows, so that the latencies across lanes overlap.
template <Isa I, class S, class T>
void soften(const Row<S>* rows, int count, std::int64_t bias_col, std::int64_t key0, std::int64_t begin,
            std::int64_t end, T* logits, Running<T> running, T* sums, std::int64_t width) {
  using Tile = AttentionTile<I, T>;
  using V = Vec<T, I>;
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  const std::int64_t from = begin / V::kLanes * V::kLanes, to = round_up(end, V::kLanes);
  V across[kReducedRows];
  T shift[kReducedRows], shrink[kReducedRows], reduced[kReducedRows];
  for (int r = 0; r < count; ++r) {
    T* row = logits + r * Tile::kStride;
    const std::int64_t low = std::clamp(rows[r].keys.begin - key0, begin, end);
    const std::int64_t high = std::clamp(rows[r].keys.end - key0, low, end);
    if (rows[r].bias) add_bias<I>(row, rows[r].bias + key0 * bias_col, bias_col, low, high);
    fill<I>(row, from, low, kLowest);
    fill<I>(row, high, to, kLowest);
    across[r] = maximum_of<I>(row, from, to);
  }
  for (int r = count; r < kReducedRows; ++r) across[r] = V::zero();
  ReduceRows<I, T>::maximum(across, reduced);
  for_vectors<I, T>(count, [&](std::int64_t r, auto lanes) {
    const V before = load<V>(running.maximum + r, lanes), after = max(load<V>(reduced + r, lanes), before);
    const V all_masked = V::set(kLowest);  // so far: 2^(-inf - 0) = 0
    store(after, running.maximum + r, lanes);
    store(select(after == all_masked, V::zero(), after), shift + r, lanes);
    store(select(before == after, V::set(1), exp2(before - after)), shrink + r, lanes);
  });
  for (int r = 0; r < count; ++r) across[r] = exponentiate<I>(logits + r * Tile::kStride, from, to, shift[r]);
  ReduceRows<I, T>::sum(across, reduced);
  for (int r = 0; r < count; ++r) {
    running.sum[r] = running.sum[r] * shrink[r] + reduced[r];
    if (!sums || shrink[r] == 1) continue;
    T* row = sums + r * width;
    for (std::int64_t d = 0; d < width; d += V::kLanes) (V::set(shrink[r]) * V::load(row + d)).store(row + d);
  }
}

// The reciprocals of what soften summed up; 0 for rows that see nothing.
template <Isa I, class T>
DRUPE_INLINE void invert(const T* sums, std::int64_t count, T* inverse) {
  using V = Vec<T, I>;
  for_vectors<I, T>(count, [&](std::int64_t r, auto lanes) {
    const V sum = load<V>(sums + r, lanes);
    store(select(sum == V::zero(), V::zero(), V::set(1) / sum), inverse + r, lanes);
  });
}

// lse of `count` neighbouring rows.
template <Isa I, class T>
void store_lse(Running<T> running, std::int64_t count, T* lse) {
  using V = Vec<T, I>;
  for_vectors<I, T>(count, [&](std::int64_t r, auto lanes) {
    const V maximum = load<V>(running.maximum + r, lanes);
    store(fma(V::set(static_cast<T>(kLn2)), maximum, log(load<V>(running.sum + r, lanes))), lse + r, lanes);
  });
}

// y from the sums of weighted values; without those y is there already, but for rows that see nothing.
template <Isa I, class S, class T>
void finish(const Row<S>* rows, std::int64_t count, const T* total, const T* sums, std::int64_t width,
            std::int64_t Dv) {
  for (std::int64_t r = 0; r < count; ++r) {
    if (total[r] == 0) {
      for (std::int64_t d = 0; d < Dv; ++d) rows[r].y[d] = S(T(0));
    } else if (sums) {
      store_row<I>(sums + r * width, Dv, 1 / total[r], rows[r].y);
    }
  }
}

}  // namespace drupe::cpu
