// gemm's core on the tensor cores: mma.m16n8 from tiles that lie the way their operand does in memory; int8 must lie
// along k. Floats are rounded to tf32 once they are in registers.
#pragma once

#include <bit>
#include <type_traits>

#include "cuda/gemm/grid.cuh"
#include "cuda/gemm/runs.cuh"
#include "cuda/tile/load.cuh"
#include "cuda/tile/mma.cuh"

namespace drupe::cuda {

// (k, outer) for floats, whose fragments ldmatrix cannot transpose: the four of k and eight of outer that a warp reads
// at a time lie in different banks.
template <class T, int kDepth, int kBlock>
struct alignas(128) PaddedTile {
  static constexpr int kRows = kDepth, kCols = kBlock, kRow = kBlock + 8;
  static constexpr int kChunks = kCols / kPackSize<T>;
  T element[kRows * kRow];
  __device__ __forceinline__ T& at(int row, int col) { return element[row * kRow + col]; }
};

// A thread's part in the copies of one operand's tiles, step by step along k. Vectors are numbered through the tile row
// by row, whichever way it lies, and a thread takes every kThreads-th: in memory they are `next` apart.
template <class T, int kBlock, int kDepth, int kThreads>
struct TensorCoreLoader {
  using KMajor = SwizzledTile<T, kBlock, kDepth>;
  static constexpr bool kPadded = std::is_same_v<T, float>;
  using OuterMajor = std::conditional_t<kPadded, PaddedTile<T, kDepth, kBlock>, SwizzledTile<T, kDepth, kBlock>>;
  union Tile {
    KMajor k_major;
    OuterMajor outer_major;
  };
  static constexpr int kPack = KMajor::kPack, kCount = kBlock * kDepth / kPack / kThreads;
  static constexpr bool kTakesOuterMajor = sizeof(T) > 1;
  static_assert(kThreads / KMajor::kChunks % 8 == 0 && (kPadded || kThreads / OuterMajor::kChunks % 8 == 0),
                "one swizzle a thread");

  const GemmOperand<T>& operand;
  bool k_major;
  const T* from;      // its first vector, or the tile's first element
  int outer;          // rows or columns that exist
  int k, to;          // of its first vector: where it lies along k and in shared memory
  unsigned mask = 0;  // which of its vectors exist, k aside

  __device__ __forceinline__ TensorCoreLoader(const GemmOperand<T>& source, const T* origin, std::int64_t extent)
      : operand(source),
        k_major(!kTakesOuterMajor || source.k_major),
        from(origin),
        outer(extent < kBlock ? static_cast<int>(extent) : kBlock),
        k(0),
        to(0) {
    if (!operand.vectors) return;
    const int thread = static_cast<int>(threadIdx.x);
    const int chunks = k_major ? KMajor::kChunks : OuterMajor::kChunks;
    const int row = thread / chunks, col = thread % chunks * kPack;
    k = k_major ? col : row;
    const int o = k_major ? row : col;
    from += k_major ? o * operand.outer_stride + k : k * operand.k_stride + o;
    if (k_major) {
      to = row * kDepth + swizzled_chunk<KMajor::kChunks>(row, col / kPack) * kPack;
    } else if constexpr (kPadded) {
      to = row * OuterMajor::kRow + col;
    } else {
      to = row * kBlock + swizzled_chunk<OuterMajor::kChunks>(row, col / kPack) * kPack;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (o + (k_major ? i * (kThreads / KMajor::kChunks) : 0) < outer) mask |= 1u << i;
    }
  }

  // The next kDepth of k, of which `depth` exist.
  __device__ __forceinline__ void load(Tile& tile, int depth) {
    if (operand.vectors) {
      int apart = kThreads * kPack;  // in shared memory
      if constexpr (kPadded) {
        if (!k_major) apart = kThreads / OuterMajor::kChunks * OuterMajor::kRow;
      }
      const int k_step = k_major ? 0 : kThreads / OuterMajor::kChunks;
      const std::int64_t next = k_major ? kThreads / KMajor::kChunks * operand.outer_stride
                                        : kThreads / OuterMajor::kChunks * operand.k_stride;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        cp_async<16>(tile.k_major.element + to + i * apart, from + i * next,
                     (mask >> i & 1u) && k + i * k_step < depth);
      }
    } else if (k_major) {
      load_elements<kThreads>(tile.k_major, from, operand.outer_stride, operand.k_stride, outer, depth);
    } else {
      load_elements<kThreads>(tile.outer_major, from, operand.k_stride, operand.outer_stride, depth, outer);
    }
    from += kDepth * operand.k_stride;
  }
};

// Fragments of floats from a tile (k, outer), as load_a_blocks and load_b_blocks order them.
template <int kBlocks, class Tile>
__device__ __forceinline__ void load_a_elements(FragmentA (&fragments)[kBlocks], Tile& tile, int m0, int k0) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      fragments[i].x[r] = std::bit_cast<std::uint32_t>(tile.at(k0 + t + r / 2 * 4, m0 + 16 * i + g + r % 2 * 8));
    }
  }
}
template <int kBlocks, class Tile>
__device__ __forceinline__ void load_b_elements(FragmentB (&fragments)[kBlocks], Tile& tile, int k0, int n0) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      fragments[j].x[r] = std::bit_cast<std::uint32_t>(tile.at(k0 + t + r * 4, n0 + 8 * j + g));
    }
  }
}

template <class Fragment, int kBlocks>
__device__ __forceinline__ void round_to_tf32(Fragment (&fragments)[kBlocks]) {
#pragma unroll
  for (Fragment& fragment : fragments) {
#pragma unroll
    for (std::uint32_t& x : fragment.x) x = cvt_rna_tf32(std::bit_cast<float>(x));
  }
}

template <class T, int kBlock>
struct GemmTensorCore {
  using Sum = std::conditional_t<std::is_same_v<T, std::int8_t>, std::int32_t, float>;
  static constexpr int kThreads = 128;  // four warps, of 64 x 64 or 32 x 32
  static constexpr int kWarpM = kBlock / 2, kWarpN = kBlock / 2;
  static constexpr int kBlocksPerMultiprocessor = 256 / kBlock;
  static constexpr int kDepth = 64 / sizeof(T), kStages = 4;
  static constexpr bool kTakesKVectors = true;
  using Slab = GemmSlab<Sum, kWarpM / 2, kWarpN>;
  using Loader = TensorCoreLoader<T, kBlock, kDepth, kThreads>;

  struct Stage {
    typename Loader::Tile a, b;
  };

  WarpTile<kWarpM, kWarpN, Sum> sums;

  __device__ __forceinline__ GemmTensorCore() { sums.fill(0); }

  // += one stage's products, where an operand's tile lies k-major or not.
  template <bool kA, bool kB>
  __device__ __forceinline__ void multiply(Stage& stage) {
    const int warp = static_cast<int>(threadIdx.x) / 32, m0 = warp / 2 * kWarpM, n0 = warp % 2 * kWarpN;
#pragma unroll
    for (int k = 0; k < kDepth; k += kDepth / 2) {
      FragmentA a[kWarpM / 16];
      FragmentB b[kWarpN / 8];
      if constexpr (kA) {
        load_a_blocks<false>(a, stage.a.k_major, m0, k);
      } else if constexpr (Loader::kPadded) {
        load_a_elements(a, stage.a.outer_major, m0, k);
      } else {
        load_a_blocks<true>(a, stage.a.outer_major, m0, k);
      }
      if constexpr (kB) {
        load_b_blocks<true>(b, stage.b.k_major, k, n0);
      } else if constexpr (Loader::kPadded) {
        load_b_elements(b, stage.b.outer_major, k, n0);
      } else {
        load_b_blocks<false>(b, stage.b.outer_major, k, n0);
      }
      if constexpr (std::is_same_v<T, float>) {
        round_to_tf32(a);
        round_to_tf32(b);
      }
      sums.template multiply<T>(a, b);
    }
  }
  // The branches are the same for all threads: four kernels in one.
  __device__ __forceinline__ void multiply(Stage& stage, bool a_k_major, bool b_k_major) {
    if constexpr (!Loader::kTakesOuterMajor) {
      multiply<true, true>(stage);
    } else if (a_k_major) {
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
        const Sum(&d)[4] = sums.d[half * kBlocks + i][j];
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
          store_pack(&slab.value[sums.row_of(i, e)][sums.col_of(j, e)], Pack<Sum, 2>{{d[e], d[e + 1]}});
        }
      }
    }
  }
};

}  // namespace drupe::cuda
