// Products of few rows (M <= 16) with a matrix whose columns lie along k, as in decoding: bound by b's bytes. A block
// of threads owns 8 kGroups columns; its warps take turns along k. Lane (g, t) reads 16 bytes of k of column g of each
// group, each once, straight into registers, four turns at a time; a's rows come from the caches, M / (8 kGroups) of
// b's bytes. The warps' sums meet in shared memory and are added in their order.
#pragma once

#include <cmath>

#include "cuda/gemm/problem.cuh"
#include "cuda/tile/mma.cuh"
#include "cuda/tile/reduce.cuh"

namespace drupe::cuda {

inline constexpr int kFewRowsThreads = 256, kFewRowsWarps = kFewRowsThreads / 32;

template <int kGroups>
struct FewRowsStorage {
  static constexpr int kCols = 8 * kGroups, kPad = 8;
  GemmPlace place;
  alignas(16) float sums[kFewRowsWarps][kFewRows][kCols + kPad];
};

// 16 bytes, or zeros.
template <class T>
__device__ __forceinline__ Pack<T, kPackSize<T>> load_pack_if(bool exists, const T* from) {
  return exists ? load_pack<kPackSize<T>>(from) : Pack<T, kPackSize<T>>{};
}

// 16-bit formats: an mma for each half of 16 bytes. It takes for a lane's k, which it sums over anyway, whichever both
// operands give it.
template <class T, int kGroups>
struct FewRowsTensorCore {
  static constexpr int kUnroll = 4, kBlocksPerMultiprocessor = 2;
  using Words = Pack<std::uint32_t, 4>;

  float d[kGroups][4] = {};

  __device__ __forceinline__ static const std::uint32_t* words(const T* from) {
    return reinterpret_cast<const std::uint32_t*>(from);
  }

  // += the products of kUnroll packs from k on, `step` apart.
  __device__ __forceinline__ void multiply(const T* a, std::int64_t a_row, int M, const T* b, std::int64_t b_col, int N,
                                           std::int64_t k, std::int64_t step, std::int64_t K) {
    const int g = static_cast<int>(threadIdx.x) % 32 / 4;
    Words left[kUnroll][2], right[kUnroll][kGroups];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t at = k + u * step;
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        right[u][j] = load_pack_if(at < K && 8 * j + g < N, words(b + (8 * j + g) * b_col + at));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
        left[u][i] = load_pack_if(at < K && 8 * i + g < M, words(a + (8 * i + g) * a_row + at));
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int half = 0; half < 4; half += 2) {
        const auto& [upper, lower] = left[u];
        const FragmentA rows{
            {upper.element[half], lower.element[half], upper.element[half + 1], lower.element[half + 1]}};
#pragma unroll
        for (int j = 0; j < kGroups; ++j) {
          const FragmentB cols{{right[u][j].element[half], right[u][j].element[half + 1]}};
          mma_m16n8<T>(d[j], rows, cols);
        }
      }
    }
  }

  template <class Sums>
  __device__ __forceinline__ void write(Sums& sums) const {
    const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[g + e / 2 * 8][8 * j + 2 * t + e % 2] = d[j][e];
    }
  }
};

// float32, up to kRows rows.
template <int kRows, int kGroups>
struct FewRowsFma {
  // 16 rows' loads take so many registers that more spill.
  static constexpr int kUnroll = kRows > 4 ? 2 : 4, kBlocksPerMultiprocessor = kRows > 4 ? 1 : 2;

  float d[kGroups][kRows] = {};

  __device__ __forceinline__ void multiply(const float* a, std::int64_t a_row, int M, const float* b,
                                           std::int64_t b_col, int N, std::int64_t k, std::int64_t step,
                                           std::int64_t K) {
    const int g = static_cast<int>(threadIdx.x) % 32 / 4;
    Pack<float, 4> right[kUnroll][kGroups];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t at = k + u * step;
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        right[u][j] = load_pack_if(at < K && 8 * j + g < N, b + (8 * j + g) * b_col + at);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t at = k + u * step;
      const float* from = a + at;
#pragma unroll
      for (int m = 0; m < kRows; ++m, from += a_row) {
        const Pack<float, 4> left = load_pack_if(at < K && m < M, from);
#pragma unroll
        for (int j = 0; j < kGroups; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) d[j][m] = std::fma(left.element[e], right[u][j].element[e], d[j][m]);
        }
      }
    }
  }

  template <class Sums>
  __device__ __forceinline__ void write(Sums& sums) const {
    const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        const float sum = warp_reduce<4>(d[j][m], Sum{});
        if (m % 4 == t) sums[m][8 * j + g] = sum;
      }
    }
  }
};

template <class Core, class T, int kGroups>
__global__ __launch_bounds__(kFewRowsThreads,
                             Core::kBlocksPerMultiprocessor) void gemm_few_rows_kernel(GemmProblem<T> problem) {
  using Storage = FewRowsStorage<kGroups>;
  constexpr int kRun = GemmProblem<T>::kRun, kRunsPerRow = Storage::kCols / kRun;
  auto& storage = shared_storage<Storage>();
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  if (thread == 0) storage.place = gemm_place(problem.grid, blockIdx.x);
  __syncthreads();
  const GemmPlace& at = storage.place;
  const T* a = problem.a.at(at.offset.at[kBatchA], 0, 0);
  const T* b = problem.b.at(at.offset.at[kBatchB], at.n0, 0);
  const std::int64_t K = problem.grid.K, cols = problem.grid.N - at.n0;
  const int M = static_cast<int>(problem.grid.M), N = cols < Storage::kCols ? static_cast<int>(cols) : Storage::kCols;
  constexpr std::int64_t kTurn = 4 * kPackSize<T>, kStep = kTurn * kFewRowsWarps;
  Core core;
#pragma unroll 1
  for (std::int64_t k = warp * kTurn; k < K; k += Core::kUnroll * kStep) {
    core.multiply(a, problem.a.outer_stride, M, b, problem.b.outer_stride, N, k + thread % 4 * kPackSize<T>, kStep, K);
  }
  core.write(storage.sums[warp]);
  __syncthreads();
  const int row = thread / kRunsPerRow, col = thread % kRunsPerRow * kRun;
  if (row >= M || col >= N) return;
  float run[kRun] = {};
#pragma unroll
  for (int w = 0; w < kFewRowsWarps; ++w) {
    float part[kRun];
    load_run(part, &storage.sums[w][row][col], 1, kRun, true);
#pragma unroll
    for (int e = 0; e < kRun; ++e) run[e] += part[e];
  }
  problem.finish(at, row, at.n0 + col, run);
}

}  // namespace drupe::cuda
