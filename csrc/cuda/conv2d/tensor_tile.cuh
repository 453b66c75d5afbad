// Matrix products on the tensor cores, for float16 and bfloat16: a block's tile, and each warp's part of it.
#pragma once

#include "cuda/tile/mma.cuh"

namespace drupe::cuda::conv {

template <int kM, int kN, int kWarpRows, int kWarpCols>
struct TensorConfig {
  static constexpr int kBlockM = kM, kBlockN = kN, kBlockK = 32;
  static constexpr int kWarpsM = kM / kWarpRows, kWarpsN = kN / kWarpCols;
  static constexpr int kWarpM = kWarpRows, kWarpN = kWarpCols;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kStages = 4;
};
using LargeTensorTile = TensorConfig<128, 128, 64, 64>;
using SmallTensorTile = TensorConfig<64, 64, 32, 32>;

// A warp's part of a stage's product; `a` holds its rows in its columns with kTransposed.
template <class T, class Config, bool kTransposed, class Warp, class A, class B>
__device__ __forceinline__ void multiply_stage(Warp& sums, A& a, B& b) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int m0 = warp / Config::kWarpsN * Config::kWarpM, n0 = warp % Config::kWarpsN * Config::kWarpN;
#pragma unroll
  for (int k = 0; k < Config::kBlockK; k += 16) {
    FragmentA left[Warp::kRowBlocks];
    FragmentB right[Warp::kColBlocks];
    load_a_blocks<kTransposed>(left, a, m0, k);
    load_b_blocks<false>(right, b, k, n0);
    sums.template multiply<T>(left, right);
  }
}

// f(row, col, first, second) for the pairs of neighbours that this thread holds of the block's sums.
template <class Config, class Warp, class F>
__device__ __forceinline__ void for_each_pair(const Warp& sums, const F& f) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int m0 = warp / Config::kWarpsN * Config::kWarpM, n0 = warp % Config::kWarpsN * Config::kWarpN;
#pragma unroll
  for (int i = 0; i < Warp::kRowBlocks; ++i) {
#pragma unroll
    for (int j = 0; j < Warp::kColBlocks; ++j) {
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        f(m0 + Warp::row_of(i, e), n0 + Warp::col_of(j, e), sums.d[i][j][e], sums.d[i][j][e + 1]);
      }
    }
  }
}

}  // namespace drupe::cuda::conv
