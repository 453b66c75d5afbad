// What channel_norm.h's sums leave behind, added up over a sample's chunks: a block of 32 channels by 32 lanes of
// threads, in double and in a fixed order.
#pragma once

#include <platform/device.cuh>

#include "cuda/channel_norm.h"
#include "cuda/tile/grid.cuh"

namespace drupe::cuda {

inline constexpr int kFoldChannels = 32;
inline constexpr int kFoldLanes = 32;
inline constexpr int kFoldThreads = kFoldChannels * kFoldLanes;

struct FoldStorage {
  double first[kFoldThreads], second[kFoldThreads];
};

// Two numbers of a channel, for its lane 0.
struct Folded {
  double first, second;
};

__device__ __forceinline__ int fold_channel() {
  return static_cast<int>(threadIdx.x) % kFoldChannels;
}
__device__ __forceinline__ int fold_lane() {
  return static_cast<int>(threadIdx.x) / kFoldChannels;
}

// The sums over a channel's lanes. All threads of the block call it, once.
__device__ __forceinline__ Folded fold(const Folded& own, FoldStorage& storage) {
  storage.first[threadIdx.x] = own.first;
  storage.second[threadIdx.x] = own.second;
  __syncthreads();
  Folded sum{};
  if (fold_lane() > 0) return sum;
  for (int lane = 0; lane < kFoldLanes; ++lane) {
    sum.first += storage.first[lane * kFoldChannels + fold_channel()];
    sum.second += storage.second[lane * kFoldChannels + fold_channel()];
  }
  return sum;
}

// Both sums of channel c of a sample.
__device__ __forceinline__ Folded fold_sums(const ChannelTiling& tiling, const double* partial, std::int64_t sample,
                                            std::int64_t c, FoldStorage& storage) {
  Folded own{};
  if (c < tiling.C) {
    const double* p = partial + sample * tiling.chunks * 2 * tiling.C + c;
#pragma unroll 4
    for (std::int64_t chunk = fold_lane(); chunk < tiling.chunks; chunk += kFoldLanes) {
      own.first += p[chunk * 2 * tiling.C];
      own.second += p[(chunk * 2 + 1) * tiling.C];
    }
  }
  return fold(own, storage);
}

// The mean, and the sum of squares about it, of channel c of a sample; NaN where there are no rows. Chunks are taken
// about the first one's mean, so that a large mean does not cancel.
__device__ __forceinline__ Folded fold_moments(const ChannelTiling& tiling, const double* partial, std::int64_t sample,
                                               std::int64_t c, FoldStorage& storage) {
  Folded own{};
  double pivot = 0;
  if (c < tiling.C && tiling.chunks > 0) {
    const double* p = partial + sample * tiling.chunks * 2 * tiling.C + c;
    pivot = p[0];
#pragma unroll 4
    for (std::int64_t chunk = fold_lane(); chunk < tiling.chunks; chunk += kFoldLanes) {
      const double size = static_cast<double>(tiling.chunk_size(chunk));
      const double distance = p[chunk * 2 * tiling.C] - pivot;
      own.first += size * distance;
      own.second += p[(chunk * 2 + 1) * tiling.C] + size * distance * distance;
    }
  }
  const Folded sum = fold(own, storage);
  const double n = static_cast<double>(tiling.rows), distance = sum.first / n;
  const double second = sum.second - sum.first * distance;
  return {.first = pivot + distance, .second = second < 0 ? 0 : second};
}

// A norm's parameter, or what stands for one that was left out.
template <class A>
__device__ __forceinline__ double parameter(const void* values, std::int64_t c, double otherwise) {
  return values ? static_cast<double>(static_cast<const A*>(values)[c]) : otherwise;
}

inline std::int64_t fold_columns(std::int64_t C) {
  return (C + kFoldChannels - 1) / kFoldChannels;
}

inline LaunchConfig fold_config(std::int64_t samples, std::int64_t C) {
  return {.grid = grid_of(samples * fold_columns(C)), .block = {kFoldThreads}, .shared_bytes = sizeof(FoldStorage)};
}

}  // namespace drupe::cuda
