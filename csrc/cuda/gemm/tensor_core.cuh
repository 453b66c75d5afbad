// gemm's core for float16 and bfloat16: mma.m16n8k16 from swizzled tiles, each operand kept the way it lies in memory.
#pragma once

#include "cuda/gemm/problem.cuh"
#include "cuda/tile/load.cuh"
#include "cuda/tile/mma.cuh"

namespace drupe::cuda {

// A thread's part in the copies of one operand's tiles, step by step along k. Vectors are numbered through the tile row
// by row, whichever way it lies, and a thread takes every kThreads-th: in memory they are `next` apart.
template <class T, int kBlock, int kDepth, int kThreads>
struct TensorCoreLoader {
  using KMajor = SwizzledTile<T, kBlock, kDepth>;
  using OuterMajor = SwizzledTile<T, kDepth, kBlock>;
  union Tile {
    KMajor k_major;
    OuterMajor outer_major;
  };
  static constexpr int kPack = KMajor::kPack, kCount = kBlock * kDepth / kPack / kThreads;
  static_assert(kThreads / KMajor::kChunks % 8 == 0 && kThreads / OuterMajor::kChunks % 8 == 0, "one swizzle a thread");

  const GemmOperand<T>& operand;
  const T* from;      // its first vector, or the tile's first element
  int outer;          // rows or columns that exist
  int k, to;          // of its first vector: where it lies along k and in shared memory
  unsigned mask = 0;  // which of its vectors exist, k aside

  __device__ __forceinline__ TensorCoreLoader(const GemmOperand<T>& source, const T* origin, std::int64_t extent)
      : operand(source), from(origin), outer(extent < kBlock ? static_cast<int>(extent) : kBlock), k(0), to(0) {
    if (!operand.vectors) return;
    const int thread = static_cast<int>(threadIdx.x);
    const int chunks = operand.k_major ? KMajor::kChunks : OuterMajor::kChunks;
    const int row = thread / chunks, col = thread % chunks * kPack;
    k = operand.k_major ? col : row;
    const int o = operand.k_major ? row : col;
    from += operand.k_major ? o * operand.outer_stride + k : k * operand.k_stride + o;
    to = operand.k_major ? row * kDepth + swizzled_chunk<KMajor::kChunks>(row, col / kPack) * kPack
                         : row * kBlock + swizzled_chunk<OuterMajor::kChunks>(row, col / kPack) * kPack;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (o + (operand.k_major ? i * (kThreads / KMajor::kChunks) : 0) < outer) mask |= 1u << i;
    }
  }

  // The next kDepth of k, of which `depth` exist.
  __device__ __forceinline__ void load(Tile& tile, int depth) {
    if (operand.vectors) {
      const int k_step = operand.k_major ? 0 : kThreads / OuterMajor::kChunks;
      const std::int64_t next = operand.k_major ? kThreads / KMajor::kChunks * operand.outer_stride
                                                : kThreads / OuterMajor::kChunks * operand.k_stride;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        cp_async<16>(tile.k_major.element + to + i * kThreads * kPack, from + i * next,
                     (mask >> i & 1u) && k + i * k_step < depth);
      }
    } else if (operand.k_major) {
      load_elements<kThreads>(tile.k_major, from, operand.outer_stride, operand.k_stride, outer, depth);
    } else {
      load_elements<kThreads>(tile.outer_major, from, operand.k_stride, operand.outer_stride, depth, outer);
    }
    from += kDepth * operand.k_stride;
  }
};

template <class T, int kBlock>
struct GemmTensorCore {
  static constexpr int kThreads = 128;  // four warps, of 64 x 64 or 32 x 32
  static constexpr int kWarpM = kBlock / 2, kWarpN = kBlock / 2;
  static constexpr int kBlocksPerMultiprocessor = 256 / kBlock;
  static constexpr int kDepth = 32, kStages = 4;
  static constexpr bool kTakesKVectors = true;
  using Slab = GemmSlab<float, kWarpM / 2, kWarpN>;
  using Loader = TensorCoreLoader<T, kBlock, kDepth, kThreads>;

  struct Stage {
    typename Loader::Tile a, b;
  };

  WarpTile<kWarpM, kWarpN> sums;

  __device__ __forceinline__ GemmTensorCore() { sums.fill(0); }

  // += one stage's products, where an operand's tile lies k-major or not.
  template <bool kA, bool kB>
  __device__ __forceinline__ void multiply(Stage& stage) {
    const int warp = static_cast<int>(threadIdx.x) / 32, m0 = warp / 2 * kWarpM, n0 = warp % 2 * kWarpN;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      FragmentA a[kWarpM / 16];
      FragmentB b[kWarpN / 8];
      if constexpr (kA) {
        load_a_blocks<false>(a, stage.a.k_major, m0, k);
      } else {
        load_a_blocks<true>(a, stage.a.outer_major, m0, k);
      }
      if constexpr (kB) {
        load_b_blocks<true>(b, stage.b.k_major, k, n0);
      } else {
        load_b_blocks<false>(b, stage.b.outer_major, k, n0);
      }
      sums.template multiply<T>(a, b);
    }
  }
  // The branches are the same for all threads: four kernels in one.
  __device__ __forceinline__ void multiply(Stage& stage, bool a_k_major, bool b_k_major) {
    if (a_k_major) {
      b_k_major ? multiply<true, true>(stage) : multiply<true, false>(stage);
    } else {
      b_k_major ? multiply<false, true>(stage) : multiply<false, false>(stage);
    }
  }

  // The upper or the lower half of the warp's rows.
  __device__ __forceinline__ void write_slab(Slab& slab, int half) const {
    constexpr int kBlocks = kWarpM / 16 / 2;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < kWarpN / 8; ++j) {
        const float (&d)[4] = sums.d[half * kBlocks + i][j];
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
          store_pack(&slab.value[sums.row_of(i, e)][sums.col_of(j, e)], Pack<float, 2>{{d[e], d[e + 1]}});
        }
      }
    }
  }
};

}  // namespace drupe::cuda
