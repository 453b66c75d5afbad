// Reductions across a warp and across a block, in a fixed order.
#pragma once

#include <platform/device.cuh>

namespace drupe::cuda {

inline constexpr int kWarp = 32;

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
// NaN wins.
struct Maximum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};
struct Minimum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b || a != a ? a : b;
  }
};

// Over segments of kWidth lanes; all lanes get the result.
template <int kWidth = kWarp, class T, class Op>
__device__ __forceinline__ T warp_reduce(T value, Op op) {
#pragma unroll
  for (int lanes = kWidth / 2; lanes > 0; lanes /= 2) value = op(value, __shfl_xor_sync(kFullMask, value, lanes));
  return value;
}

// One value per warp, for block_reduce.
template <class T, int kThreads>
struct ReduceStorage {
  T partial[kThreads / kWarp];
};

// Over a one-dimensional block of kThreads; all threads get the result. The storage may be used again after the next
// __syncthreads.
template <int kThreads, class T, class Op>
__device__ __forceinline__ T block_reduce(T value, Op op, ReduceStorage<T, kThreads>& storage) {
  value = warp_reduce(value, op);
  if constexpr (kThreads == kWarp) return value;
  if (threadIdx.x % kWarp == 0) storage.partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  T result = storage.partial[0];
#pragma unroll
  for (int warp = 1; warp < kThreads / kWarp; ++warp) result = op(result, storage.partial[warp]);
  return result;
}

}  // namespace drupe::cuda
