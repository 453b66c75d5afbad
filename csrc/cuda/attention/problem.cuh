// What all kernels of attention share: operands and their rows, and who sees whom.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <platform/device.cuh>

#include "ops/attention.h"

namespace drupe::cuda {

inline constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

__host__ __device__ constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

template <class A>
__device__ __forceinline__ A infinity() {
  return std::numeric_limits<A>::infinity();
}

// The rows of one head of an operand.
template <class T>
struct Rows {
  T* data;
  std::int64_t stride;
  std::int64_t width;
  bool aligned;  // every row begins and ends at a multiple of 16 bytes

  __device__ __forceinline__ Rows from(std::int64_t row) const { return {data + row * stride, stride, width, aligned}; }
};

template <class T>
__device__ __forceinline__ Rows<T> rows_of(const AttentionOperand& operand, std::int64_t b, std::int64_t h,
                                           std::int64_t width) {
  constexpr std::int64_t kPack = 16 / sizeof(T);
  T* const data = static_cast<T*>(operand.data) + b * operand.batch + h * operand.head;
  return {data, operand.row, width,
          reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && operand.row % kPack == 0 && width % kPack == 0};
}

// Half open.
struct Span {
  std::int64_t begin, end;
  __device__ __forceinline__ bool empty() const { return begin >= end; }
};

// What batch b's lengths leave, and the keys that stand where a query stands: j = i + offset.
struct Sight {
  std::int64_t queries, keys, offset, left, right;

  __device__ __forceinline__ Sight(const AttentionArgs& args, std::int64_t b)
      : queries(args.query_lengths ? args.query_lengths[b] : args.Sq),
        keys(args.lengths ? args.lengths[b] : args.Skv),
        offset(args.Skv - args.Sq),
        left(args.left),
        right(args.right) {}

  // The queries [begin, end) that count, and the keys that any of them sees.
  __device__ __forceinline__ Span counted_queries(std::int64_t begin, std::int64_t end) const {
    return {begin, std::min(end, queries)};
  }
  __device__ __forceinline__ Span keys_seen_by(Span some) const {
    if (some.empty()) return {0, 0};
    return {std::max<std::int64_t>(0, some.begin + offset - left), std::min(keys, some.end + offset + right)};
  }
  // The other way round.
  __device__ __forceinline__ Span counted_keys(std::int64_t begin, std::int64_t end) const {
    return {begin, std::min(end, keys)};
  }
  __device__ __forceinline__ Span queries_that_see(Span some) const {
    if (some.empty()) return {0, 0};
    return {std::max<std::int64_t>(0, some.begin - offset - right), std::min(queries, some.end - offset + left)};
  }
};

// Who sees whom among the queries from query0 and the keys from key0 on, in local indices below kMost.
struct Mask {
  static constexpr std::int64_t kMost = std::int64_t{1} << 30;
  int lowest, highest;  // of key - query
  int queries, keys;    // that exist

  __device__ __forceinline__ Mask(const Sight& sight, std::int64_t query0, std::int64_t key0)
      : lowest(clamp(sight.offset - sight.left + query0 - key0)),
        highest(clamp(sight.offset + sight.right + query0 - key0)),
        queries(clamp(sight.queries - query0)),
        keys(clamp(sight.keys - key0)) {}

  __device__ __forceinline__ bool sees(int query, int key) const {
    const int ahead = key - query;
    return ahead >= lowest && ahead <= highest && query < queries && key < keys;
  }
  // The same for local indices that count from (query, key) on.
  __device__ __forceinline__ Mask from(int query, int key) const {
    Mask shifted = *this;
    shifted.lowest += query - key;
    shifted.highest += query - key;
    shifted.queries -= query;
    shifted.keys -= key;
    return shifted;
  }
  // Whether each of so many queries sees each of so many keys.
  __device__ __forceinline__ bool is_open(int tile_queries, int tile_keys) const {
    return lowest <= 1 - tile_queries && highest >= tile_keys - 1 && queries >= tile_queries && keys >= tile_keys;
  }

 private:
  static __device__ __forceinline__ int clamp(std::int64_t x) {
    return static_cast<int>(x < -kMost ? -kMost : x > kMost ? kMost : x);
  }
};

// Which tile of which head a block owns. Tiles vary fastest, the last one first: under a causal mask it has most to do.
struct Task {
  std::int64_t tile;
  int part, head, batch;
};
// A grid has less than 2^31 blocks, so 32 bits hold each of its extents.
__device__ __forceinline__ Task task_of_block(std::int64_t tiles, std::int64_t parts, std::int64_t heads) {
  const auto tile_count = static_cast<unsigned>(tiles), part_count = static_cast<unsigned>(parts);
  const auto head_count = static_cast<unsigned>(heads);
  const unsigned rest = blockIdx.x / tile_count, head = rest / part_count;
  return {static_cast<std::int64_t>(tile_count - 1 - blockIdx.x % tile_count), static_cast<int>(rest % part_count),
          static_cast<int>(head % head_count), static_cast<int>(head / head_count)};
}

}  // namespace drupe::cuda
