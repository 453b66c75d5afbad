// attention of few queries and many keys: how keys are cut into splits, whose query a packed row is, and what a split
// leaves for the kernel that joins them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/attention/problem.cuh"
#include "ops/attention.h"

namespace drupe::cuda {

inline constexpr std::int64_t kSplitKeys = 128;  // a split's length is a multiple of it
inline constexpr std::int64_t kFewestKeys = 256;
inline constexpr std::int64_t kMostSplits = 128;
inline constexpr std::int64_t kBlockCost = 64;      // of starting a block and joining what it gives, in keys
inline constexpr std::int64_t kResidentBlocks = 2;  // of a multiprocessor

// How many splits of `keys` keys finish first, where each has `blocks` blocks: the time is that of the waves in which
// they run.
constexpr std::int64_t choose_splits(std::int64_t blocks, std::int64_t keys, int multiprocessors) {
  const std::int64_t slots = kResidentBlocks * multiprocessors;
  const std::int64_t most = std::min(kMostSplits, std::max<std::int64_t>(1, keys / kFewestKeys));
  std::int64_t best = 1, least = INT64_MAX;
  for (std::int64_t splits = 1; splits <= most; ++splits) {
    const std::int64_t time = ceil_div(blocks * splits, slots) * (ceil_div(keys, splits) + kBlockCost);
    if (time < least) best = splits, least = time;
  }
  return best;
}

// The keys that queries may see, lengths aside, up to the last: in splits of `length` from `begin` on.
struct Splits {
  std::int64_t begin, length;
  int count;

  __device__ __forceinline__ Span keys_of(int split) const {
    const std::int64_t first = begin + split * length;
    return {first, first + length};
  }
};

constexpr Splits split_keys(const AttentionArgs& args, std::int64_t blocks, int multiprocessors) {
  const std::int64_t begin = std::max<std::int64_t>(0, args.Skv - args.Sq - args.left), keys = args.Skv - begin;
  const std::int64_t splits = choose_splits(blocks, keys, multiprocessors);
  const std::int64_t length = ceil_div(ceil_div(keys, splits), kSplitKeys) * kSplitKeys;
  return {begin, length, static_cast<int>(ceil_div(keys, length))};
}

// The queries of all heads that read one head of keys, head by head, are the rows of one problem.
struct PackedRows {
  int queries, rows;  // of a head, of a head of keys

  __device__ __forceinline__ explicit PackedRows(const AttentionArgs& args)
      : queries(static_cast<int>(args.Sq)), rows(static_cast<int>(args.Hq / args.Hkv * args.Sq)) {}
  __device__ __forceinline__ int head(int row) const {
    return static_cast<int>(static_cast<unsigned>(row) / static_cast<unsigned>(queries));
  }
  __device__ __forceinline__ int query(int row) const { return row - head(row) * queries; }
};

// What splits leave: for each split and (b, h, i) a row of sums, and the maximum in units of log 2 and the sum of
// 2^(logit - maximum).
template <class A>
struct Partials {
  A* sums;
  A* softmax;
  std::int64_t rows, width;  // (B, Hq, Sq); Dv

  __device__ __forceinline__ A* sums_of(int split, std::int64_t row) const {
    return sums + (split * rows + row) * width;
  }
  __device__ __forceinline__ void set_softmax(int split, std::int64_t row, A maximum, A sum) const {
    A* const to = softmax + 2 * (split * rows + row);
    to[0] = maximum;
    to[1] = sum;
  }
};

// Which rows of which head of keys a block owns, and which keys. Splits vary slowest: those of a head run together.
struct DecodeTask {
  int split, batch, kv_head, tile, part;
};
__device__ __forceinline__ DecodeTask decode_task_of_block(std::int64_t tiles, std::int64_t parts,
                                                           std::int64_t kv_heads, std::int64_t B) {
  unsigned rest = blockIdx.x;
  const auto take = [&](std::int64_t extent) {
    const auto count = static_cast<unsigned>(extent);
    const unsigned index = rest % count;
    rest /= count;
    return static_cast<int>(index);
  };
  DecodeTask task{};
  task.tile = take(tiles);
  task.part = take(parts);
  task.kv_head = take(kv_heads);
  task.batch = take(B);
  task.split = static_cast<int>(rest);
  return task;
}

// y and lse from what all splits left, in their order.
template <class T>
void join_splits(const AttentionArgs& args, const Partials<Accumulator<T>>& partials, int splits, Stream stream);

// Of problems that suit the tensor cores, too.
void attention_decode_mma(const AttentionArgs& args, Stream stream);

}  // namespace drupe::cuda
