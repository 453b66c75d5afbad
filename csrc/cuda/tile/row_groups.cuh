// Rows of a few units (elements, or packs of them), shared out to groups of 2^k lanes of a warp: narrow rows lie side
// by side in a warp, wide ones are cut into pieces of a warp each.
#pragma once

#include <algorithm>
#include <cstdint>
#include <platform/device.cuh>

#include "core/dtype.h"
#include "cuda/tile/map.cuh"
#include "cuda/tile/reduce.cuh"
#include "cuda/tile/vec.cuh"
#include "ops/bag_order.h"

namespace drupe::cuda {

// One piece of a row: the unit that this lane has, which may lie past the row's end.
struct RowPiece {
  std::int64_t row, unit;
};

struct RowGroups {
  std::int64_t units;   // of a row
  std::int64_t pieces;  // of a row
  std::int64_t count;   // pieces of all rows
  int log_lanes = 0;

  RowGroups(std::int64_t rows, std::int64_t row_units) : units(row_units) {
    while (log_lanes < 5 && (std::int64_t{1} << log_lanes) < units) ++log_lanes;
    pieces = std::max<std::int64_t>(1, (units + (std::int64_t{1} << log_lanes) - 1) >> log_lanes);
    count = rows * pieces;
  }

  std::int64_t threads() const { return count << log_lanes; }

  __device__ __forceinline__ int lane() const { return static_cast<int>(threadIdx.x & ((1u << log_lanes) - 1)); }
  __device__ __forceinline__ std::int64_t first() const { return global_thread() >> log_lanes; }
  __device__ __forceinline__ std::int64_t step() const { return global_threads() >> log_lanes; }

  __device__ __forceinline__ RowPiece piece(std::int64_t index) const {
    if (pieces == 1) return {index, lane()};
    const std::int64_t row = (index | pieces) >> 32 == 0
                                 ? static_cast<std::uint32_t>(index) / static_cast<std::uint32_t>(pieces)
                                 : index / pieces;
    return {row, ((index - row * pieces) << log_lanes) + lane()};
  }
};

// The sum over the lanes of a group; all lanes in the mask take part, whole groups, and those of a group get its sum.
template <class T>
__device__ __forceinline__ T group_sum(T value, int log_lanes, unsigned mask = kFullMask) {
  for (int lanes = (1 << log_lanes) / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(mask, value, lanes);
  return value;
}

// An element of an array of int32 or int64.
struct IndexArray {
  const void* data;
  bool wide;

  IndexArray(const void* pointer, Dtype dtype) : data(pointer), wide(dtype == Dtype::i64) {}

  __device__ __forceinline__ std::int64_t operator[](std::int64_t i) const {
    return wide ? static_cast<const std::int64_t*>(data)[i] : static_cast<const std::int32_t*>(data)[i];
  }
};

// Bags of consecutive places: between offsets, or of one length.
struct BagMap {
  const std::int64_t* offsets;
  std::int64_t length;
  BagOrder order;

  __device__ __forceinline__ std::int64_t begin(std::int64_t bag) const {
    return offsets ? offsets[bag] : bag * length;
  }
  // The last bag that begins at or before i.
  __device__ __forceinline__ std::int64_t bag_of(std::int64_t i) const {
    if (!offsets) return length == 1 ? i : i / length;
    std::int64_t low = 0, high = order.bags;
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (offsets[middle] <= i ? low : high) = middle;
    }
    return low;
  }
};

// Packs of what arithmetic happens in, which may be longer than one load.
template <class S, int kPack>
struct WidePack {
  using A = Accumulator<S>;
  static constexpr int kStep = kPack < kPackSize<A> ? kPack : kPackSize<A>;
  A element[kPack];

  static __device__ __forceinline__ WidePack zero() {
    WidePack row;
#pragma unroll
    for (int k = 0; k < kPack; ++k) row.element[k] = A(0);
    return row;
  }
  static __device__ __forceinline__ WidePack load(const S* from) {
    const Pack<S, kPack> pack = load_pack<kPack>(from);
    WidePack row;
#pragma unroll
    for (int k = 0; k < kPack; ++k) row.element[k] = widen(pack.element[k]);
    return row;
  }
  static __device__ __forceinline__ WidePack load_wide(const A* from) {
    WidePack row;
#pragma unroll
    for (int k = 0; k < kPack; k += kStep) {
      const Pack<A, kStep> pack = load_pack<kStep>(from + k);
#pragma unroll
      for (int j = 0; j < kStep; ++j) row.element[k + j] = pack.element[j];
    }
    return row;
  }
  __device__ __forceinline__ void store(S* to) const {
    Pack<S, kPack> pack;
#pragma unroll
    for (int k = 0; k < kPack; ++k) pack.element[k] = narrow<S>(element[k]);
    store_pack(to, pack);
  }
  __device__ __forceinline__ void store_wide(A* to) const {
#pragma unroll
    for (int k = 0; k < kPack; k += kStep) {
      Pack<A, kStep> pack;
#pragma unroll
      for (int j = 0; j < kStep; ++j) pack.element[j] = element[k + j];
      store_pack(to + k, pack);
    }
  }
};

}  // namespace drupe::cuda
