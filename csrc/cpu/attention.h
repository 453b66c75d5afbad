// What attention's two passes share: who sees whom, rows in and out, 2^x and the softmax.
#pragma once

#include <algorithm>
#include <limits>

#include "cpu/attention_product.h"
#include "cpu/gemm_bf16.h"
#include "cpu/lanes.h"
#include "cpu/simd_mask.h"
#include "cpu/simd_math.h"
#include "ops/attention.h"

namespace drupe::cpu {

inline constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// 2^x for x <= 127; 0 below -126, where subnormal results would be slow; NaN stays NaN. By minimax polynomials on
// [-1/2, 1/2]: relative error 9.2e-8 and rounding; or 1.1e-4 where pairs are made of it, a twentieth of their rounding.
template <class P = Product, class T, Isa I>
DRUPE_INLINE Vec<T, I> exp2(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (std::is_same_v<T, double>) {
    return map_lanes(x, [](double a) { return std::exp2(a); });
  } else {
    const V n = round(x);
    V p;
    if constexpr (kMultipliesPairs<P>) {
      p = polynomial(x - n, 1.f, 0.693282962f, 0.242211014f, 0.0550086051f);
    } else {
      p = polynomial(x - n, 1.f, 0.693147004f, 0.240222424f, 0.0555073358f, 0.00967151485f, 0.0013264732f);
    }
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

// The keys that any of the queries [begin, end) sees.
template <Isa I>
DRUPE_INLINE Range keys_seen(const AttentionArgs& args, std::int64_t b, std::int64_t begin, std::int64_t end) {
  if (args.query_lengths) end = std::min(end, args.query_lengths[b]);
  if (begin >= end) return {0, 0};
  return {keys_of<I>(args, b, begin).begin, keys_of<I>(args, b, end - 1).end};
}

template <Isa>
DRUPE_INLINE Range queries_of(const AttentionArgs& args, std::int64_t b, std::int64_t j) {
  if (args.lengths && j >= args.lengths[b]) return {0, 0};
  const std::int64_t position = j - args.Skv + args.Sq;
  const std::int64_t length = args.query_lengths ? args.query_lengths[b] : args.Sq;
  return {std::max<std::int64_t>(0, position - args.right), std::min(length, position + args.left + 1)};
}

// The queries that see any key.
template <Isa I>
DRUPE_INLINE Range queries_seeing(const AttentionArgs& args, std::int64_t b) {
  const std::int64_t keys = args.lengths ? args.lengths[b] : args.Skv;
  if (keys == 0) return {0, 0};
  return {queries_of<I>(args, b, 0).begin, queries_of<I>(args, b, keys - 1).end};
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

template <Isa I, class T>
DRUPE_INLINE void fill(T* to, std::int64_t begin, std::int64_t end, T value) {
  for (std::int64_t j = begin; j < end; ++j) to[j] = value;
}

// A line of a left operand, of `count` elements: times the factor and with zeros up to `width`; or in P's pairs, as
// they are.
template <Isa I, class P, class S, class T>
DRUPE_INLINE void load_line(const S* from, std::int64_t count, T factor, T* to, std::int64_t width) {
  if constexpr (kMultipliesPairs<P>) {
    const T* pairs = reinterpret_cast<const T*>(from);
    for_vectors<I, T>(count / 2, [&](std::int64_t k, auto lanes) { load<Vec<T, I>>(pairs + k, lanes).store(to + k); });
    if (count % 2 != 0) to[count / 2] = bf16_pair(from[count - 1], {});
  } else {
    load_row<I>(from, count, factor, to, width);
  }
}

// Rows of `depth` elements as the columns of a panel, panel[d * kCols + j] = from[j * row + d] for j < cols and 0
// beyond; or of one of P's pairs.
template <Isa I, class P, class S, class T>
void pack_lines(const S* from, std::int64_t row, std::int64_t cols, std::int64_t depth, T* panel) {
  if constexpr (kMultipliesPairs<P>) {
    PairedMatrix<I>{from, row, 1, depth}.pack_cols(panel, 0, cols, 0, ceil_div(depth, 2));
  } else {
    StridedMatrix<I, S>{from, row, 1}.pack_cols(panel, 0, cols, 0, depth);
  }
}

// The rows `range` of a right operand, each to its place, padded with zeros to to_row; or of P's pairs of neighbouring
// rows, the other halves of which at both ends of the range are zeros.
template <Isa I, class P, class S, class T>
void pack_rows(const S* from, std::int64_t row, Range range, std::int64_t width, T* to, std::int64_t to_row) {
  if (range.empty()) return;
  if constexpr (kMultipliesPairs<P>) {
    for (std::int64_t r = range.begin / 2 * 2; r < range.end; r += 2) {
      const S* low = from + r * row;
      T* pairs = to + r / 2 * to_row;
      if (r >= range.begin && r + 1 < range.end) {
        interleave<I>(pairs, low, low + row, width);
      } else if (r >= range.begin) {
        for (std::int64_t d = 0; d < width; ++d) pairs[d] = bf16_pair(low[d], {});
      } else {
        for (std::int64_t d = 0; d < width; ++d) pairs[d] = bf16_pair({}, low[row + d]);
      }
      fill<I>(pairs, width, to_row, T(0));
    }
  } else {
    for (std::int64_t r = range.begin; r < range.end; ++r) {
      load_row<I>(from + r * row, width, T(1), to + r * to_row, to_row);
    }
  }
}

// to[0, count) = factor * from; with P's conversion, if it multiplies pairs.
template <Isa I, class P = Product, class S, class T>
DRUPE_INLINE void store_row(const T* from, std::int64_t count, T factor, S* to) {
  using V = Vec<T, I>;
  const V f = V::set(factor);
  if constexpr (kMultipliesPairs<P>) {
    for (; count >= 2 * V::kLanes; count -= 2 * V::kLanes, from += 2 * V::kLanes, to += 2 * V::kLanes) {
      P::pair(f * V::load(from), f * V::load(from + V::kLanes)).store(reinterpret_cast<T*>(to));
    }
  }
  for_vectors<I, T>(count, [&](std::int64_t j, auto lanes) { store(f * load<V>(from + j, lanes), to + j, lanes); });
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

// The same, to the pairs of P's product: those of logits[2 k] and its neighbour at logits[k]. The sum is that of the
// rounded values, so that their errors cancel where the values they weigh are alike.
template <Isa I, class P, class T>
DRUPE_INLINE Vec<T, I> exponentiate_pairs(T* logits, std::int64_t begin, std::int64_t end, T shift) {
  using V = Vec<T, I>;
  const V by = V::set(shift), ones = V::set(bf16_pair(BFloat16(1.f), BFloat16(1.f)));
  V sum = V::zero();
  for (std::int64_t j = begin; j < end; j += 2 * V::kLanes) {
    const V low = exp2<P>(V::load(logits + j) - by);
    const V high = j + V::kLanes < end ? exp2<P>(V::load(logits + j + V::kLanes) - by) : V::zero();
    const V pairs = P::pair(low, high);
    pairs.store(logits + j / 2);
    sum = P::add(pairs, ones, sum);
  }
  return sum;
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
// a row does not see what others do; what P multiplies. `sums`, if given what earlier keys gave, shrinks to the new
// maximum. In phases over the rows, so that the latencies across lanes overlap.
template <Isa I, class P, class S, class T>
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
  for (int r = 0; r < count; ++r) {
    T* row = logits + r * Tile::kStride;
    if constexpr (kMultipliesPairs<P>) {
      across[r] = exponentiate_pairs<I, P>(row, from, to, shift[r]);
    } else {
      across[r] = exponentiate<I>(row, from, to, shift[r]);
    }
  }
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

// y from the sums of weighted values, rounded as P's pairs are; without those y is there already, but for rows that see
// nothing.
template <Isa I, class P, class S, class T>
void finish(const Row<S>* rows, std::int64_t count, const T* total, const T* sums, std::int64_t width,
            std::int64_t Dv) {
  for (std::int64_t r = 0; r < count; ++r) {
    if (total[r] == 0) {
      for (std::int64_t d = 0; d < Dv; ++d) rows[r].y[d] = S(T(0));
    } else if (sums) {
      store_row<I, P>(sums + r * width, Dv, 1 / total[r], rows[r].y);
    }
  }
}

}  // namespace drupe::cpu
