// A row of neighbouring elements, wherever it begins, by the aligned 16-byte blocks of memory that hold it; and
// reductions over the threads that share a row.
#pragma once

#include <cstdint>
#include <platform/device.cuh>

#include "cuda/tile/reduce.cuh"
#include "cuda/tile/shares.cuh"
#include "cuda/tile/vec.cuh"

namespace drupe::cuda {

// How far into a block of kPackSize<T> elements the row begins: its block b covers the elements from
// b * kPackSize<T> - skew on.
template <class T>
__device__ __forceinline__ int skew_of(const T* row) {
  return static_cast<int>(reinterpret_cast<std::uintptr_t>(row) / sizeof(T) % kPackSize<T>);
}

// Elements begin … begin + kPack - 1 of a row, `fill` outside of [0, size). `aligned`: whole blocks begin at multiples
// of 16 bytes.
template <int kPack, class T, class A>
__device__ __forceinline__ void load_block(const T* row, std::int64_t begin, std::int64_t size, bool aligned, A fill,
                                           A* values) {
  constexpr int kStep = kPack < kPackSize<T> ? kPack : kPackSize<T>;
  if (aligned && begin >= 0 && begin + kPack <= size) {
#pragma unroll
    for (int first = 0; first < kPack; first += kStep) {
      const auto pack = load_pack<kStep>(row + begin + first);
#pragma unroll
      for (int k = 0; k < kStep; ++k) values[first + k] = widen(pack.element[k]);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const std::int64_t at = begin + k;
      values[k] = at >= 0 && at < size ? widen(row[at]) : fill;
    }
  }
}

// The opposite; what lies outside of the row is dropped.
template <int kPack, class T, class A>
__device__ __forceinline__ void store_block(T* row, std::int64_t begin, std::int64_t size, bool aligned,
                                            const A* values) {
  static_assert(kPack <= kPackSize<T>);
  if (aligned && begin >= 0 && begin + kPack <= size) {
    Pack<T, kPack> pack;
#pragma unroll
    for (int k = 0; k < kPack; ++k) pack.element[k] = narrow<T>(values[k]);
    store_pack(row + begin, pack);
  } else {
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const std::int64_t at = begin + k;
      if (at >= 0 && at < size) row[at] = narrow<T>(values[k]);
    }
  }
}

// Over segments of `lanes` neighbouring lanes of a warp, a power of two, or over the block where it is more than 32.
template <int kThreads, class T, class Op>
__device__ __forceinline__ T group_reduce(T value, Op op, int lanes, ReduceStorage<T, kThreads>& storage) {
  if (lanes > kWarp) return block_reduce<kThreads>(value, op, storage);
  for (int by = lanes / 2; by > 0; by /= 2) value = op(value, __shfl_xor_sync(kFullMask, value, by));
  return value;
}

}  // namespace drupe::cuda
