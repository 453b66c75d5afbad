// Sums over partial results that lie one row a block: 32 columns by 16 lanes of threads, in a fixed order.
#pragma once

#include <platform/device.cuh>

namespace drupe::cuda {

inline constexpr int kFoldColumns = 32;
inline constexpr int kFoldLanes = 16;
inline constexpr int kFoldThreads = kFoldColumns * kFoldLanes;

struct FoldStorage {
  double value[kFoldThreads];
};

__device__ __forceinline__ int fold_column() {
  return static_cast<int>(threadIdx.x) % kFoldColumns;
}
__device__ __forceinline__ int fold_lane() {
  return static_cast<int>(threadIdx.x) / kFoldColumns;
}

// The sum of a column's values over all lanes, given to each of them. All threads of the block call it.
__device__ __forceinline__ double fold(double value, FoldStorage& storage) {
  storage.value[threadIdx.x] = value;
  __syncthreads();
  double sum = 0;
  for (int lane = 0; lane < kFoldLanes; ++lane) sum += storage.value[lane * kFoldColumns + fold_column()];
  __syncthreads();
  return sum;
}

}  // namespace drupe::cuda
