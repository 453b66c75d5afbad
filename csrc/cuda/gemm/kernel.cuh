// The kernels of every matrix product whose operands come through shared memory, and their launch. A core says how a
// block of threads multiplies (tensor_core.cuh, fma.cuh), a problem what it multiplies and what becomes of the sums.
#pragma once

#include <algorithm>
#include <memory>
#include <platform/launch.cuh>
#include <platform/ptx.cuh>

#include "core/cuda.h"
#include "cuda/gemm/grid.cuh"
#include "cuda/gemm/runs.cuh"

namespace drupe::cuda {

template <class C>
struct GemmStorage {
  union {
    typename C::Stage stage[C::kStages];
    typename C::Slab slab[C::kThreads / 32];
  };
  GemmPlace place;  // here rather than in registers
};

template <class C, class Problem>
__device__ __forceinline__ void sum_products(C& core, GemmStorage<C>& storage, const Problem& problem) {
  const GemmPlace& at = storage.place;
  typename C::Loader a(problem.a, problem.a.at(at.offset.at[kBatchA], at.m0, at.k_begin), problem.grid.M - at.m0);
  typename C::Loader b(problem.b, problem.b.at(at.offset.at[kBatchB], at.n0, at.k_begin), problem.grid.N - at.n0);
  const std::int64_t depth = at.k_end - at.k_begin;
  int steps = static_cast<int>(tiles_across(depth, C::kDepth)), loads = steps, stage = 0;
  const int last_depth = static_cast<int>(depth - static_cast<std::int64_t>(steps - 1) * C::kDepth);
  // The next step of k into its stage; past the last, an empty group keeps the count.
  const auto load = [&] {
    if (loads > 0) {
      a.load(storage.stage[stage].a, loads == 1 ? last_depth : C::kDepth);
      b.load(storage.stage[stage].b, loads == 1 ? last_depth : C::kDepth);
      --loads;
    }
    cp_async_commit_group();
    stage = stage == C::kStages - 1 ? 0 : stage + 1;
  };
#pragma unroll 1
  for (int i = 0; i < C::kStages - 1; ++i) load();
#pragma unroll 1
  for (; steps > 0; --steps) {
    cp_async_wait_group<C::kStages - 2>();
    __syncthreads();  // the oldest stage has come, and all have left the one before it
    load();
    core.multiply(storage.stage[stage], problem.a.k_major, problem.b.k_major);
  }
  cp_async_wait_group<0>();
  __syncthreads();
}

// Where the sums of a tile's part wait for the others, row by row.
template <class Problem>
__device__ __forceinline__ typename Problem::Sum* partial_tile(const Problem& problem, std::int64_t partial) {
  return problem.partial + partial * problem.grid.block * problem.grid.block;
}

// A slab's sums, from row row0 and column col0 of the block's tile on.
template <class Problem, class Slab>
__device__ __forceinline__ void flush_slab(const Problem& problem, const GemmPlace& at, Slab& slab, int row0,
                                           int col0) {
  using Sum = typename Problem::Sum;
  constexpr int kRun = Problem::kRun, kRunsPerRow = Slab::kCols / kRun;
  __syncwarp();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x) % 32; i < Slab::kRows * kRunsPerRow; i += 32) {
    const int r = i / kRunsPerRow, c = i % kRunsPerRow * kRun;
    const std::int64_t row = at.m0 + row0 + r, col = at.n0 + col0 + c;
    if (row >= problem.grid.M || col >= problem.grid.N) continue;
    Sum run[kRun];
    load_run(run, &slab.value[r][c], 1, kRun, true);
    if (at.partial >= 0) {
      store_run(partial_tile(problem, at.partial) + (row0 + r) * problem.grid.block + col0 + c, run, kRun, true);
    } else {
      problem.finish(at, row, col, run);
    }
  }
  __syncwarp();
}

template <class C, class Problem>
__global__ __launch_bounds__(C::kThreads, C::kBlocksPerMultiprocessor) void gemm_kernel(Problem problem) {
  auto& storage = shared_storage<GemmStorage<C>>();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x == 0) storage.place = gemm_place(problem.grid, problem.grid.first + blockIdx.x);
  __syncthreads();
  C core;
  sum_products(core, storage, problem);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    core.write_slab(storage.slab[warp], half);
    flush_slab(problem, storage.place, storage.slab[warp], warp / 2 * C::kWarpM + half * C::kWarpM / 2,
               warp % 2 * C::kWarpN);
  }
}

inline constexpr int kReduceThreads = 256;

struct GemmReduceStorage {
  GemmPlace place;
};

// A block of threads adds the parts of one piece of a tile, in the order of k.
template <class Problem>
__global__ __launch_bounds__(kReduceThreads) void gemm_reduce_kernel(Problem problem) {
  using Sum = typename Problem::Sum;
  constexpr int kRun = Problem::kRun;
  auto& storage = shared_storage<GemmReduceStorage>();
  const unsigned block = static_cast<unsigned>(problem.grid.block), pieces = block * block / kRun / kReduceThreads;
  const unsigned tile = blockIdx.x / pieces, at = (blockIdx.x % pieces * kReduceThreads + threadIdx.x) * kRun;
  if (threadIdx.x == 0) storage.place = gemm_place(problem.grid, problem.grid.whole + tile);
  __syncthreads();
  const std::int64_t row = storage.place.m0 + at / block, col = storage.place.n0 + at % block;
  if (row >= problem.grid.M || col >= problem.grid.N) return;
  Sum run[kRun] = {};
#pragma unroll 4
  for (std::int64_t split = 0; split < problem.grid.splits; ++split) {
    Sum part[kRun];
    load_run(part, partial_tile(problem, split * problem.grid.rest() + tile) + at, 1, kRun, true);
#pragma unroll
    for (int e = 0; e < kRun; ++e) run[e] += part[e];
  }
  problem.finish(storage.place, row, col, run);
}

template <class C, class Problem>
void launch_gemm(Problem problem, Stream stream) {
  using Sum = typename Problem::Sum;
  GemmGrid& grid = problem.grid;
  const std::int64_t tile = std::int64_t{grid.block} * grid.block, rest = grid.rest();
  std::shared_ptr<void> scratch;
  if (grid.splits > 1) {
    const auto sums = static_cast<std::size_t>(rest * grid.splits * tile);
    scratch = allocate(sums * sizeof(Sum), {DeviceType::cuda, stream.device});
    problem.partial = static_cast<Sum*>(scratch.get());
  }
  constexpr std::int64_t kMostBlocks = 0x7fffffff;  // of a grid
  for (; grid.first < grid.blocks(); grid.first += kMostBlocks) {
    launch<gemm_kernel<C, Problem>>({.grid = {static_cast<unsigned>(std::min(grid.blocks() - grid.first, kMostBlocks))},
                                     .block = {C::kThreads},
                                     .shared_bytes = sizeof(GemmStorage<C>)},
                                    stream, problem);
  }
  if (grid.splits > 1) {
    launch<gemm_reduce_kernel<Problem>>(
        {.grid = {static_cast<unsigned>(rest * (tile / Problem::kRun / kReduceThreads))},
         .block = {kReduceThreads},
         .shared_bytes = sizeof(GemmReduceStorage)},
        stream, problem);
  }
}

// Whether vectors of T can be read along the contiguous one of two dimensions.
template <class T>
bool takes_vectors(const void* data, std::int64_t contiguous_stride, std::int64_t contiguous_extent,
                   std::int64_t other_stride, std::int64_t other_extent, const Dims& shape, const Dims& strides) {
  constexpr std::int64_t kPack = kPackSize<T>;
  if (contiguous_stride != 1 || contiguous_extent % kPack != 0) return false;
  if (other_extent > 1 && other_stride % kPack != 0) return false;
  for (int d = 0; d < shape.size(); ++d) {
    if (shape[d] > 1 && strides[d] % kPack != 0) return false;
  }
  return is_pack_aligned(static_cast<const T*>(data));
}

}  // namespace drupe::cuda
