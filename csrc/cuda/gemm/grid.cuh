// Where the blocks of threads of a matrix product work.
#pragma once

#include <cstdint>
#include <platform/device.cuh>

#include "cuda/gemm_tile.h"
#include "cuda/tile/strided.cuh"

namespace drupe::cuda {

// A matrix (outer, k): outer is M for a, N for b.
template <class T>
struct GemmOperand {
  const T* data;
  std::int64_t outer_stride, k_stride;
  bool k_major;  // in shared memory, and which way neighbouring threads read
  bool vectors;  // 16 bytes at a time along the contiguous dimension

  __device__ __forceinline__ const T* at(std::int64_t batch, std::int64_t outer, std::int64_t k) const {
    return data + batch + outer * outer_stride + k * k_stride;
  }
};

// Operands of the batch, in the order of its strides.
enum BatchOperand { kBatchA, kBatchB, kBatchResidual, kBatchOperands };

struct GemmGrid {
  std::int64_t M, N, K;
  Strided<kBatchOperands> batch;
  int block;
  std::int64_t tiles_m, tiles_n;
  std::int64_t whole, splits, part;  // tiles before those whose K is cut, into how many parts, of how much
  std::int64_t first;                // of the blocks of this launch

  GemmGrid(std::int64_t M, std::int64_t N, std::int64_t K, const Loops& batch, const GemmSchedule& schedule, int depth)
      : M(M),
        N(N),
        K(K),
        batch(batch),
        block(schedule.block),
        tiles_m(tiles_across(M, block)),
        tiles_n(tiles_across(N, block)),
        whole(schedule.whole),
        splits(1),
        part(K),
        first(0) {
    if (schedule.splits == 1) return;
    part = tiles_across(tiles_across(K, schedule.splits), depth) * depth;
    splits = tiles_across(K, part);
  }

  __host__ __device__ std::int64_t rest() const { return tiles_m * tiles_n * batch.size - whole; }
  __host__ __device__ std::int64_t blocks() const { return whole + rest() * splits; }
};

struct GemmPlace {
  std::int64_t m0, n0, k_begin, k_end;
  std::int64_t partial;  // which of the sums that wait for others; -1 where they are whole
  std::int64_t batch;
  Offsets<kBatchOperands> offset;
};

// Tile by tile, and for those in parts part by part. Eight rows of tiles go column by column: what runs at one time
// shares its operands in the L2 cache.
__device__ __forceinline__ GemmPlace gemm_place(const GemmGrid& grid, std::int64_t index) {
  constexpr std::int64_t kGroup = 8;
  GemmPlace at;
  at.partial = -1;
  at.k_begin = 0;
  at.k_end = grid.K;
  if (index >= grid.whole && grid.splits > 1) {
    at.partial = index - grid.whole;
    const std::int64_t split = at.partial / grid.rest();
    index -= split * grid.rest();
    at.k_begin = split * grid.part;
    at.k_end = at.k_begin + grid.part < grid.K ? at.k_begin + grid.part : grid.K;
  }
  const std::int64_t tiles = grid.tiles_m * grid.tiles_n;
  at.batch = index / tiles;
  const std::int64_t tile = index - at.batch * tiles;
  const std::int64_t group = tile / (kGroup * grid.tiles_n), within = tile - group * kGroup * grid.tiles_n;
  const std::int64_t first = group * kGroup;
  const std::int64_t rows = grid.tiles_m - first < kGroup ? grid.tiles_m - first : kGroup;
  const std::int64_t column = within / rows;
  at.m0 = (first + within - column * rows) * grid.block;
  at.n0 = column * grid.block;
  at.offset = locate(grid.batch, at.batch);
  return at;
}

}  // namespace drupe::cuda
