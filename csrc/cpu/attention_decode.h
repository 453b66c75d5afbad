// attention, forward, for the few query rows of a decoding step: keys and values are read once, where they lie, and
// nothing is packed. A task owns kChunkKeys keys of one key/value head and all rows that read it; partial results of a
// head's chunks are merged in order. Logits are dot products along D, four rows by four keys at a time; the values'
// sums hold four rows by four vectors. Bound by the bytes of k and v.
#pragma once

#include "cpu/attention.h"

namespace drupe::cpu {

inline constexpr std::int64_t kDecodeRows = 8;

// Asks for the cache lines of a row: rows lie too far apart for the hardware to guess the next one.
template <Isa, class S>
DRUPE_INLINE void prefetch_row(const S* row, std::int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(row);
  const std::int64_t size = count * static_cast<std::int64_t>(sizeof(S));
  for (std::int64_t at = 0; at < size; at += 64) __builtin_prefetch(bytes + at, 0, 2);
}

template <class S, Isa I>
class Decode {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using Tile = AttentionTile<I, T>;
  static constexpr std::int64_t kChunkKeys = 1024;
  static constexpr std::int64_t kBlockKeys = 128;
  static constexpr std::int64_t kAheadRows = 16, kAheadBytes = 4096;  // to prefetch, at least
  static constexpr int kGroup = 4;
  static constexpr T kLowest = -std::numeric_limits<T>::infinity();
  static_assert(kBlockKeys <= Tile::kDepth && kDecodeRows <= Tile::kMostRows);

  // What one chunk of keys gave: per row the weighted values, then the maxima, then the sums.
  struct Partial {
    T* sums;
    Running<T> running;
  };

 public:
  explicit Decode(const AttentionArgs& args)
      : args_(args), rows_(args.Hq / args.Hkv * args.Sq), keys_ahead_(ahead(args.D)), values_ahead_(ahead(args.Dv)) {}

  void run() const {
    const std::int64_t heads = args_.B * args_.Hkv;
    const std::int64_t chunks = std::max<std::int64_t>(1, ceil_div(args_.Skv, kChunkKeys));
    const std::int64_t size = rows_ * (width() + 2);
    const Scratch<T> memory(static_cast<std::size_t>(heads * chunks * size));
    const auto partial = [&](std::int64_t at) {
      T* sums = memory.data() + at * size;
      return Partial{sums, {sums + rows_ * width(), sums + rows_ * (width() + 1)}};
    };
    parallel_for(heads * chunks, [&](std::int64_t task) {
      Row<S> rows[kDecodeRows];
      describe<I>(args_, task / chunks, 0, rows_, rows);
      attend(rows, task / chunks, task % chunks * kChunkKeys, partial(task));
      if (chunks == 1) finish_head(rows, task, partial(task));
    });
    if (chunks == 1) return;
    parallel_for(heads, [&](std::int64_t head) {
      Row<S> rows[kDecodeRows];
      describe<I>(args_, head, 0, rows_, rows);
      for (std::int64_t c = 1; c < chunks; ++c) merge(partial(head * chunks), partial(head * chunks + c));
      finish_head(rows, head, partial(head * chunks));
    });
  }

 private:
  // Rows to fetch ahead.
  static std::int64_t ahead(std::int64_t width) {
    return std::max(kAheadRows, kAheadBytes / std::max<std::int64_t>(1, width * std::int64_t{sizeof(S)}));
  }
  std::int64_t width() const { return round_up(args_.Dv, V::kLanes); }

  void finish_head(const Row<S>* rows, std::int64_t head, const Partial& partial) const {
    finish<I, Product>(rows, rows_, partial.running.sum, partial.sums, width(), args_.Dv);
    store_lse<I>(partial.running, rows_, static_cast<T*>(args_.lse) + head * rows_);
  }

  void attend(const Row<S>* rows, std::int64_t head, std::int64_t chunk, const Partial& partial) const {
    fill<I>(partial.sums, 0, rows_ * width(), T(0));
    fill<I>(partial.running.maximum, 0, rows_, kLowest);
    fill<I>(partial.running.sum, 0, rows_, T(0));
    Range seen{chunk + kChunkKeys, chunk};
    for (std::int64_t r = 0; r < rows_; ++r) {
      if (rows[r].keys.empty()) continue;
      seen.begin = std::min(seen.begin, std::max(chunk, rows[r].keys.begin));
      seen.end = std::max(seen.end, std::min(chunk + kChunkKeys, rows[r].keys.end));
    }
    if (seen.empty()) return;
    const std::int64_t depth = round_up(args_.D, V::kLanes);
    const Scratch<T> queries(static_cast<std::size_t>(rows_ * depth));
    const Scratch<T> logits(static_cast<std::size_t>(rows_ * Tile::kStride));
    for (std::int64_t r = 0; r < rows_; ++r) {
      load_row<I>(rows[r].q, args_.D, static_cast<T>(args_.scale * kLog2E), queries.data() + r * depth, depth);
    }
    const std::int64_t b = head / args_.Hkv, h = head % args_.Hkv;
    for (std::int64_t j = seen.begin; j < seen.end; j += kBlockKeys) {
      const std::int64_t count = std::min(kBlockKeys, seen.end - j);
      for_groups(rows_, [&]<int kRows>(std::int64_t r) {
        for (std::int64_t i = 0; i < count; i += kGroup) {
          dot<kRows>(queries.data() + r * depth, depth, locate<const S>(args_.k, b, h, j + i),
                     std::min<std::int64_t>(kGroup, count - i), logits.data() + r * Tile::kStride + i);
        }
      });
      soften<I, Product>(rows, static_cast<int>(rows_), args_.bias_col, j, 0, count, logits.data(), partial.running,
                         partial.sums, width());
      for_groups(rows_, [&]<int kRows>(std::int64_t r) {
        weigh<kRows>(logits.data() + r * Tile::kStride, count, locate<const S>(args_.v, b, h, j),
                     partial.sums + r * width());
      });
    }
  }

  // Calls f.operator()<n>(first) for groups of n <= kGroup rows.
  template <class F>
  static void for_groups(std::int64_t rows, const F& f) {
    std::int64_t r = 0;
    for (; r + kGroup <= rows; r += kGroup) f.template operator()<kGroup>(r);
    if (rows - r == 3) f.template operator()<3>(r);
    if (rows - r == 2) f.template operator()<2>(r);
    if (rows - r == 1) f.template operator()<1>(r);
  }

  // logits[r][i] = query r . key i for `keys` keys; the query rows are padded with zeros to `depth`.
  template <int kRows>
  void dot(const T* queries, std::int64_t depth, const S* key, std::int64_t keys, T* logits) const {
    const S* row[kGroup];
    for (int i = 0; i < kGroup; ++i) {
      row[i] = key + std::min<std::int64_t>(i, keys - 1) * args_.k.row;
      prefetch_row<I>(row[i] + keys_ahead_ * args_.k.row, args_.D);
    }
    V sum[kRows][kGroup];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kGroup; ++i) sum[r][i] = V::zero();
    }
    for (std::int64_t d = 0; d < depth; d += V::kLanes) {
      const int n = static_cast<int>(std::min<std::int64_t>(V::kLanes, args_.D - d));
      V right[kGroup];
#pragma GCC unroll 4
      for (int i = 0; i < kGroup; ++i) right[i] = n == V::kLanes ? V::load(row[i] + d) : V::load(row[i] + d, n);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const V left = V::load(queries + r * depth + d);
#pragma GCC unroll 4
        for (int i = 0; i < kGroup; ++i) sum[r][i] = fma(left, right[i], sum[r][i]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      T across[kGroup];
#pragma GCC unroll 4
      for (int i = 0; i < kGroup; ++i) across[i] = reduce_add(sum[r][i]);
      for (std::int64_t i = 0; i < keys; ++i) logits[r * Tile::kStride + i] = across[i];
    }
  }

  // sums[r] += sum over i of weights[r][i] value i
  template <int kRows>
  void weigh(const T* weights, std::int64_t keys, const S* value, T* sums) const {
    std::int64_t d = 0;
    for (; d + kGroup * V::kLanes <= args_.Dv; d += kGroup * V::kLanes) {
      weigh_columns<kRows, kGroup>(weights, keys, value + d, V::kLanes, sums + d);
    }
    for (; d < args_.Dv; d += V::kLanes) {
      const int n = static_cast<int>(std::min<std::int64_t>(V::kLanes, args_.Dv - d));
      weigh_columns<kRows, 1>(weights, keys, value + d, n, sums + d);
    }
  }

  template <int kRows, int kVectors>
  void weigh_columns(const T* weights, std::int64_t keys, const S* value, int n, T* sums) const {
    V sum[kRows][kVectors];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = V::load(sums + r * width() + v * V::kLanes);
    }
    for (std::int64_t i = 0; i < keys; ++i, value += args_.v.row) {
      prefetch_row<I>(value + values_ahead_ * args_.v.row, kVectors * V::kLanes);
      V right[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        right[v] = kVectors > 1 ? V::load(value + v * V::kLanes) : V::load(value, n);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const V left = V::set(weights[r * Tile::kStride + i]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(left, right[v], sum[r][v]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v].store(sums + r * width() + v * V::kLanes);
    }
  }

  // Adds a later chunk's part to the first's.
  void merge(const Partial& to, const Partial& from) const {
    for (std::int64_t r = 0; r < rows_; ++r) {
      if (from.running.sum[r] == 0) continue;
      const T top = std::max(to.running.maximum[r], from.running.maximum[r]);
      const T shift = top == kLowest ? T(0) : top;  // only NaN was seen
      const T kept = to.running.sum[r] == 0 ? T(0) : std::exp2(to.running.maximum[r] - shift);
      const T added = std::exp2(from.running.maximum[r] - shift);
      to.running.maximum[r] = top;
      to.running.sum[r] = kept * to.running.sum[r] + added * from.running.sum[r];
      T* sums = to.sums + r * width();
      for (std::int64_t d = 0; d < width(); d += V::kLanes) {
        const V old = V::set(kept) * V::load(sums + d);
        fma(V::set(added), V::load(from.sums + r * width() + d), old).store(sums + d);
      }
    }
  }

  const AttentionArgs& args_;
  const std::int64_t rows_, keys_ahead_, values_ahead_;
};

}  // namespace drupe::cpu
