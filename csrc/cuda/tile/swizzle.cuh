// Tiles in shared memory that are written in rows and read in columns of 16 bytes without bank conflicts: the chunk's
// index is XORed with the row's.
#pragma once

#include <platform/device.cuh>

namespace drupe::cuda {

// Where chunk `chunk` (16 bytes) of row `row` lies in a row of kChunks, a power of two: any 8 consecutive rows (aligned
// to 8) have one chunk column in 8 different groups of banks.
template <int kChunks>
__device__ __forceinline__ int swizzled_chunk(int row, int chunk) {
  static_assert((kChunks & (kChunks - 1)) == 0);
  constexpr int kRowsPerLine = kChunks < 8 ? 8 / kChunks : 1;  // a line: all 32 banks, 128 bytes
  constexpr int kMask = kChunks < 8 ? kChunks - 1 : 7;
  return chunk ^ ((row / kRowsPerLine) & kMask);
}

// kRows x kCols, row by row.
template <class T, int kRowCount, int kColCount>
struct alignas(128) SwizzledTile {
  static constexpr int kRows = kRowCount, kCols = kColCount;
  static constexpr int kPack = 16 / static_cast<int>(sizeof(T));  // elements of a chunk
  static constexpr int kChunks = kCols / kPack;
  static_assert(kChunks * kPack == kCols);

  T element[kRows * kCols];

  // Elements kPack chunk … kPack (chunk + 1) - 1 of a row.
  __device__ __forceinline__ T* chunk(int row, int chunk) {
    return element + row * kCols + swizzled_chunk<kChunks>(row, chunk) * kPack;
  }
  __device__ __forceinline__ T& at(int row, int col) { return chunk(row, col / kPack)[col % kPack]; }
};

}  // namespace drupe::cuda
