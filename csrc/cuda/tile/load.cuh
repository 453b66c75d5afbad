// A block's copy of a tile from global memory into a swizzled tile of shared memory; what lies outside becomes zero.
#pragma once

#include <cstdint>
#include <platform/device.cuh>
#include <platform/ptx.cuh>

#include "cuda/tile/swizzle.cuh"

namespace drupe::cuda {

// By cp.async, 16 bytes at a time: the caller commits and waits. Rows are contiguous; `from`, the row stride and `cols`
// are multiples of 16 bytes. The first `rows` rows and `cols` columns exist (any number, negative too).
template <int kThreads, class T, int kRows, int kCols>
__device__ __forceinline__ void load_vectors(SwizzledTile<T, kRows, kCols>& tile, const T* from,
                                             std::int64_t row_stride, std::int64_t rows, std::int64_t cols) {
  using Tile = SwizzledTile<T, kRows, kCols>;
  constexpr int kCount = kRows * Tile::kChunks / kThreads;
  static_assert(kCount * kThreads == kRows * Tile::kChunks);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int index = static_cast<int>(threadIdx.x) + i * kThreads;
    const int row = index / Tile::kChunks, chunk = index % Tile::kChunks;
    const bool valid = row < rows && chunk * Tile::kPack < cols;
    cp_async<16>(tile.chunk(row, chunk), valid ? from + row * row_stride + chunk * Tile::kPack : from, valid);
  }
}

// By ordinary loads and stores, any strides; neighbouring threads read along the columns. Done when the call returns,
// for others after the next barrier.
template <int kThreads, class T, int kRows, int kCols>
__device__ __forceinline__ void load_elements(SwizzledTile<T, kRows, kCols>& tile, const T* from,
                                              std::int64_t row_stride, std::int64_t col_stride, std::int64_t rows,
                                              std::int64_t cols) {
  constexpr int kCount = kRows * kCols / kThreads;
  constexpr int kAtOnce = kCount < 8 ? kCount : 8;  // loads in flight
  static_assert(kCount * kThreads == kRows * kCols && kCount % kAtOnce == 0);
#pragma unroll 1
  for (int first = 0; first < kCount; first += kAtOnce) {
    T element[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int index = static_cast<int>(threadIdx.x) + (first + i) * kThreads;
      const int row = index / kCols, col = index % kCols;
      element[i] = row < rows && col < cols ? from[row * row_stride + col * col_stride] : T{};
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int index = static_cast<int>(threadIdx.x) + (first + i) * kThreads;
      tile.at(index / kCols, index % kCols) = element[i];
    }
  }
}

}  // namespace drupe::cuda
