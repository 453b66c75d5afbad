// The operands of attention's backward pass: blocks of queries and ranges of keys, in every layout that the products
// want, as P multiplies elements of T, which hold kItems neighbours of S along the depth.
#pragma once

#include <algorithm>
#include <limits>

#include "cpu/attention.h"

namespace drupe::cpu {

// A right operand of the products: rows of whole panels.
template <class T>
struct Rows {
  const T* data;
  std::int64_t row;
};

template <class S, Isa I, class P>
class BackwardBlocks {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using Tile = AttentionTile<I, T>;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

 public:
  static constexpr std::int64_t kBlock = 128;
  static constexpr bool kPaired = kMultipliesPairs<P>;
  static constexpr std::int64_t kItems = kPaired ? 2 : 1;
  static_assert(kBlock <= Tile::kDepth && kBlock % (2 * Tile::kCols) == 0 && Tile::kDepth % Tile::kCols == 0);

  // One block of query rows.
  struct Queries {
    std::int64_t b, h, begin, count;
    Rows<T> rows, grads;  // Q and dO, where they lie or padded with zeros
    Scratch<T> padded, padded_grads;
    Scratch<T> rows_t, grads_t;    // Q^T and dO^T as panels of kCols queries
    Scratch<T> bias_t;             // bias^T of one block of keys, as panels of kCols queries
    T lse[kBlock], delta[kBlock];  // lse in units of log 2, +infinity where P is 0
  };

  // A range of key rows as left operands, K (times key_factor()) and V, and K as a right one.
  struct Keys {
    std::int64_t begin, count;
    Scratch<T> keys, values, paired;

    // Columns from d on of the right operand, from the depth'th of its rows on.
    Rows<T> right(std::int64_t d, std::int64_t depth, std::int64_t width) const {
      if (kPaired) return {paired.data() + depth * width + d, width};
      return {keys.data() + (d / Tile::kDepth * count + depth) * Tile::kStride + d % Tile::kDepth, Tile::kStride};
    }
  };

  explicit BackwardBlocks(const AttentionBackwardArgs& args) : args_(args), f_(args.forward) {}

  std::int64_t key_width() const { return round_up(f_.D, Tile::kCols); }
  std::int64_t value_width() const { return round_up(f_.Dv, Tile::kCols); }
  static std::int64_t depth_of(std::int64_t width) { return ceil_div(width, kItems); }

  // What makes logits in units of log 2 of products, and which of it K has already.
  T logit_factor() const { return static_cast<T>(f_.scale * kLog2E); }
  T key_factor() const { return kPaired ? T(1) : logit_factor(); }

  Queries make_queries() const {
    return {.b = 0,
            .h = 0,
            .begin = 0,
            .count = 0,
            .rows = {},
            .grads = {},
            .padded = Scratch<T>(in_place(f_.D) ? 0 : size(kBlock / kItems, key_width())),
            .padded_grads = Scratch<T>(in_place(f_.Dv) ? 0 : size(kBlock / kItems, value_width())),
            .rows_t = Scratch<T>(size(kBlock, depth_of(f_.D))),
            .grads_t = Scratch<T>(size(kBlock, depth_of(f_.Dv))),
            .bias_t = Scratch<T>(f_.bias ? size(kBlock, kBlock) : 0),
            .lse = {},
            .delta = {}};
  }
  Keys make_keys(std::int64_t count) const {
    return {.begin = 0,
            .count = count,
            .keys = Scratch<T>(left_size(count, f_.D)),
            .values = Scratch<T>(left_size(count, f_.Dv)),
            .paired = Scratch<T>(kPaired ? size(ceil_div(count, kItems), key_width()) : 0)};
  }

  void load_queries(Queries& q, std::int64_t b, std::int64_t h, std::int64_t begin) const {
    q.b = b, q.h = h, q.begin = begin, q.count = std::min(kBlock, f_.Sq - begin);
    const T* lse = static_cast<const T*>(f_.lse) + (b * f_.Hq + h) * f_.Sq + begin;
    for (std::int64_t r = 0; r < kBlock; ++r) {
      q.lse[r] = kInfinity;
      q.delta[r] = 0;
      if (r >= q.count) continue;
      if (lse[r] != -kInfinity) q.lse[r] = lse[r] * static_cast<T>(kLog2E);
      q.delta[r] = dot(locate<const S>(args_.dy, b, h, begin + r), locate<const S>(f_.y, b, h, begin + r));
    }
    const Range seeing = within(queries_seeing<I>(f_, b), begin, q.count);
    q.rows = right_operand(f_.q, b, h, begin, seeing, f_.D, q.padded.data());
    q.grads = right_operand(args_.dy, b, h, begin, seeing, f_.Dv, q.padded_grads.data());
    for (std::int64_t c = 0; c < q.count; c += Tile::kCols) {
      const std::int64_t cols = std::min<std::int64_t>(Tile::kCols, q.count - c);
      pack_lines<I, P>(locate<const S>(f_.q, b, h, begin + c), f_.q.row, cols, f_.D,
                       q.rows_t.data() + c * depth_of(f_.D));
      pack_lines<I, P>(locate<const S>(args_.dy, b, h, begin + c), args_.dy.row, cols, f_.Dv,
                       q.grads_t.data() + c * depth_of(f_.Dv));
    }
  }

  void load_keys(Keys& k, std::int64_t b, std::int64_t h, std::int64_t begin, std::int64_t count) const {
    k.begin = begin, k.count = count;
    load_left(f_.k, b, h, begin, count, f_.D, key_factor(), k.keys.data());
    load_left(f_.v, b, h, begin, count, f_.Dv, T(1), k.values.data());
    if (!kPaired) return;
    const Range seen = within(keys_seen<I>(f_, b, 0, f_.Sq), begin, count);
    pack_rows<I, P>(locate<const S>(f_.k, b, h, begin), f_.k.row, seen, f_.D, k.paired.data(), key_width());
  }

  void load_bias(const Queries& q, std::int64_t key0, std::int64_t count) const {
    if (!f_.bias) return;
    const S* bias = static_cast<const S*>(f_.bias) + q.b * f_.bias_batch + q.h * f_.bias_head + q.begin * f_.bias_row +
                    key0 * f_.bias_col;
    const StridedMatrix<I, S> matrix{bias, f_.bias_row, f_.bias_col};
    for (std::int64_t c = 0; c < q.count; c += Tile::kCols) {
      matrix.pack_cols(q.bias_t.data() + c * kBlock, c, std::min<std::int64_t>(Tile::kCols, q.count - c), 0, count);
    }
  }

 private:
  static std::size_t size(std::int64_t rows, std::int64_t cols) { return static_cast<std::size_t>(rows * cols); }
  static std::size_t left_size(std::int64_t rows, std::int64_t width) {
    return static_cast<std::size_t>(ceil_div(depth_of(width), Tile::kDepth) * rows * Tile::kStride);
  }
  // What of `range` lies in the `count` rows from `begin` on, counted from there. Other rows may hold anything, and
  // must not be the half of a pair.
  static Range within(Range range, std::int64_t begin, std::int64_t count) {
    return {std::clamp<std::int64_t>(range.begin - begin, 0, count),
            std::clamp<std::int64_t>(range.end - begin, 0, count)};
  }
  // Rows that fill whole panels are read where they lie.
  static bool in_place(std::int64_t width) { return std::is_same_v<S, T> && width % Tile::kCols == 0; }

  static Rows<T> right_operand(const AttentionOperand& from, std::int64_t b, std::int64_t h, std::int64_t begin,
                               Range range, std::int64_t width, T* padded) {
    const S* rows = locate<const S>(from, b, h, begin);
    if constexpr (std::is_same_v<S, T>) {
      if (in_place(width)) return {rows, from.row};
    }
    const std::int64_t row = round_up(width, Tile::kCols);
    pack_rows<I, P>(rows, from.row, range, width, padded, row);
    return {padded, row};
  }

  void load_left(const AttentionOperand& from, std::int64_t b, std::int64_t h, std::int64_t begin, std::int64_t count,
                 std::int64_t width, T factor, T* to) const {
    constexpr std::int64_t kDepth = Tile::kDepth * kItems;
    for (std::int64_t j = 0; j < count; ++j) {
      for (std::int64_t d = 0; d < width; d += kDepth) {
        const std::int64_t depth = std::min(kDepth, width - d);
        load_line<I, P>(locate<const S>(from, b, h, begin + j) + d, depth, factor,
                        to + (d / kDepth * count + j) * Tile::kStride, round_up(depth, Tile::kCols));
      }
    }
  }

  T dot(const S* grad, const S* y) const {
    V sum = V::zero();
    for_vectors<I, T>(
        f_.Dv, [&](std::int64_t d, auto lanes) { sum = fma(load<V>(grad + d, lanes), load<V>(y + d, lanes), sum); });
    return reduce_add(sum);
  }

  const AttentionBackwardArgs& args_;
  const AttentionArgs& f_;
};

}  // namespace drupe::cpu
