// Matrix products without tensor cores, for float and double: 16 x 16 threads own a square block of sums in registers.
#pragma once

#include "cuda/conv2d/gather.cuh"

namespace drupe::cuda::conv {

// kRows x kCols in shared memory, row by row. As SwizzledTile, without a swizzle.
template <class T, int kRowCount, int kColCount>
struct alignas(16) PlainTile {
  static constexpr int kRows = kRowCount, kCols = kColCount;

  T element[kRows * kCols];

  __device__ __forceinline__ T* chunk(int row, int chunk) { return element + row * kCols + chunk * kPackSize<T>; }
};

// Elements of the depth that a slice has: 64 bytes of an image's row.
template <class T>
inline constexpr int kThreadTileDepth = 64 / static_cast<int>(sizeof(T));
inline constexpr int kThreadTileThreads = 256;

// A thread's kSize x kSize sums of a block of 16 kSize: packs of neighbours, 16 packs apart.
template <class T, int kSize>
struct ThreadTile {
  static constexpr int kBlock = 16 * kSize;
  static constexpr int kPack = kPackSize<T>;
  static constexpr int kPacks = kSize / kPack;
  static_assert(kPacks * kPack == kSize);

  T sum[kSize][kSize];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
#pragma unroll
      for (int j = 0; j < kSize; ++j) sum[i][j] = T(0);
    }
  }
  __device__ __forceinline__ static int row() { return static_cast<int>(threadIdx.x) / 16 * kPack; }
  __device__ __forceinline__ static int col() { return static_cast<int>(threadIdx.x) % 16 * kPack; }

  // += a^T b for tiles of kDepth x kBlock.
  template <class Tile>
  __device__ __forceinline__ void multiply(Tile& a, Tile& b) {
#pragma unroll
    for (int k = 0; k < Tile::kRows; ++k) {
      Pack<T, kPack> left[kPacks], right[kPacks];
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        left[p] = load_pack<kPack>(a.element + k * kBlock + p * 16 * kPack + row());
        right[p] = load_pack<kPack>(b.element + k * kBlock + p * 16 * kPack + col());
      }
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
          sum[i][j] += left[i / kPack].element[i % kPack] * right[j / kPack].element[j % kPack];
        }
      }
    }
  }

  // f(row, col, sums) for each pack of the block.
  template <class F>
  __device__ __forceinline__ void for_each_pack(const F& f) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        T pack[kPack];
#pragma unroll
        for (int e = 0; e < kPack; ++e) pack[e] = sum[i][p * kPack + e];
        f(i / kPack * 16 * kPack + row() + i % kPack, p * 16 * kPack + col(), pack);
      }
    }
  }
};

}  // namespace drupe::cuda::conv
