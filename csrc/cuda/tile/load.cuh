// A block's copy of a tile from global memory into a swizzled tile of shared memory; what lies outside becomes zero.
#pragma once

#include <cstdint>
#include <platform/device.cuh>

#include "cuda/tile/swizzle.cuh"

namespace drupe::cuda {

// By ordinary loads and stores, any strides: what cp.async cannot copy in whole pieces. Neighbouring threads read along
// the columns. The first `rows` rows and `cols` columns exist. Others see the tile after the next barrier.
template <int kThreads, class Tile, class T>
__device__ __forceinline__ void load_elements(Tile& tile, const T* from, std::int64_t row_stride,
                                              std::int64_t col_stride, int rows, int cols) {
  constexpr int kRows = Tile::kRows, kCols = Tile::kCols;
  constexpr int kPass = kThreads / kCols, kPasses = kRows / kPass;  // rows at a time
  constexpr int kAtOnce = kPasses < 8 ? kPasses : 8;                // loads in flight
  static_assert(kPass * kCols == kThreads && kPasses * kPass == kRows && kPasses % kAtOnce == 0);
  const int col = static_cast<int>(threadIdx.x) % kCols;
  int row = static_cast<int>(threadIdx.x) / kCols;
  const T* next = from + row * row_stride + col * col_stride;
  if (col >= cols) rows = 0;
#pragma unroll 1
  for (int pass = 0; pass < kPasses; pass += kAtOnce) {
    T element[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      element[i] = row + i * kPass < rows ? *next : T{};
      next += kPass * row_stride;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) tile.at(row + i * kPass, col) = element[i];
    row += kAtOnce * kPass;
  }
}

}  // namespace drupe::cuda
