// gemm's cores for float32 and float64, exact: tiles (k, outer) in shared memory, copied by cp.async in whatever pieces
// the strides allow.
#pragma once

#include <platform/ptx.cuh>

#include "cuda/gemm/grid.cuh"
#include "cuda/gemm/runs.cuh"

namespace drupe::cuda {

template <class T, int kBlock>
struct GemmPaddedTiles {
  static constexpr int kThreads = 2 * kBlock;  // warps of 32 x kBlock / 2
  static constexpr int kWarpM = 32, kWarpN = kBlock / 2;
  static constexpr int kBlocksPerMultiprocessor = 256 / kBlock;
  static constexpr int kDepth = 8, kStages = 4;
  static constexpr bool kTakesKVectors = false;
  static constexpr int kRow = kBlock + 4;  // four rows of k lie in different banks

  struct alignas(16) Operand {
    T element[kDepth * kRow];
    __device__ __forceinline__ T* at(int k, int outer) { return element + k * kRow + outer; }
  };
  struct Stage {
    Operand a, b;
  };

  // A thread's part in the copies of one operand's tiles, step by step along k: 16 bytes at a time, or single elements.
  // Of these a warp takes 32 along the outer dimension, or for a k-major operand patches of 8 of k x 4: whole sectors
  // of memory, and as many banks.
  struct Loader {
    static constexpr int kPack = kPackSize<T>, kElements = kDepth * kBlock / kThreads;
    static constexpr int kQuarter = kBlock / 4;  // what the block's warps take of the outer dimension in patches
    static_assert(kThreads / 32 * 4 == kQuarter && kElements == 4);

    const GemmOperand<T>& operand;
    const T* from;      // its first element
    int k, to;          // which one along k, and where that lies in shared memory
    unsigned mask = 0;  // which quarters of the outer dimension exist for it; without patches only the first counts

    __device__ __forceinline__ Loader(const GemmOperand<T>& source, const T* origin, std::int64_t extent)
        : operand(source) {
      const int thread = static_cast<int>(threadIdx.x);
      int o;
      if (operand.vectors) {
        k = thread / (kBlock / kPack);
        o = thread % (kBlock / kPack) * kPack;
      } else if (operand.k_major) {
        k = thread % 8;
        o = thread / 8;
      } else {
        k = thread / kBlock;
        o = thread % kBlock;
      }
      from = origin + o * operand.outer_stride + k * operand.k_stride;
      to = k * kRow + o;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (o + j * kQuarter < extent) mask |= 1u << j;
      }
    }

    // The next kDepth of k, of which `depth` exist.
    __device__ __forceinline__ void load(Operand& stage, int depth) {
      T* const first = stage.element + to;
      if (operand.k_major && !operand.vectors) {
        const T* next = from;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          cp_async<sizeof(T)>(first + j * kQuarter, next, (mask >> j & 1u) && k < depth);
          next += kQuarter * operand.outer_stride;
        }
        from += kDepth * operand.k_stride;
      } else if (operand.vectors) {
        load_rows<kPack>(first, depth);
      } else {
        load_rows<1>(first, depth);
      }
    }

   private:
    // kCount elements of the outer dimension from each row of k that is the thread's.
    template <int kCount>
    __device__ __forceinline__ void load_rows(T* first, int depth) {
      constexpr int kPass = kThreads * kCount / kBlock;
#pragma unroll
      for (int step = 0; step < kDepth; step += kPass) {
        cp_async<kCount * sizeof(T)>(first + step * kRow, from, (mask & 1u) && k + step < depth);
        from += kPass * operand.k_stride;
      }
    }
  };
};

// float32: a lane of a warp (4 x 8 lanes) has 8 rows, in two fours 16 apart, and kBlock / 16 columns, in fours 32
// apart.
template <int kBlock>
struct GemmFma : GemmPaddedTiles<float, kBlock> {
  using Tiles = GemmPaddedTiles<float, kBlock>;
  using Slab = GemmSlab<float, 16, Tiles::kWarpN>;
  static constexpr int kGroups = Tiles::kWarpN / 32;

  float sums[2][4][kGroups][4] = {};

  __device__ __forceinline__ static int lane_row() { return static_cast<int>(threadIdx.x) % 32 / 8 * 4; }
  __device__ __forceinline__ static int lane_col() { return static_cast<int>(threadIdx.x) % 8 * 4; }

  __device__ __forceinline__ void multiply(typename Tiles::Stage& stage, bool, bool) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int m0 = warp / 2 * Tiles::kWarpM + lane_row(), n0 = warp % 2 * Tiles::kWarpN + lane_col();
#pragma unroll
    for (int k = 0; k < Tiles::kDepth; ++k) {
      Pack<float, 4> a[2], b[kGroups];
#pragma unroll
      for (int i = 0; i < 2; ++i) a[i] = load_pack<4>(stage.a.at(k, m0 + 16 * i));
#pragma unroll
      for (int j = 0; j < kGroups; ++j) b[j] = load_pack<4>(stage.b.at(k, n0 + 32 * j));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
          for (int j = 0; j < kGroups; ++j) {
#pragma unroll
            for (int c = 0; c < 4; ++c) {
              sums[i][r][j][c] = std::fma(a[i].element[r], b[j].element[c], sums[i][r][j][c]);
            }
          }
        }
      }
    }
  }

  __device__ __forceinline__ void write_slab(Slab& slab, int half) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        const float (&four)[4] = sums[half][r][j];
        store_pack(&slab.value[lane_row() + r][lane_col() + 32 * j],
                   Pack<float, 4>{{four[0], four[1], four[2], four[3]}});
      }
    }
  }
};

// float64: mma.m8n8k4, which adds in the order of k as fma does.
template <int kBlock>
struct GemmDouble : GemmPaddedTiles<double, kBlock> {
  using Tiles = GemmPaddedTiles<double, kBlock>;
  using Slab = GemmSlab<double, 16, Tiles::kWarpN>;
  static constexpr int kRowBlocks = Tiles::kWarpM / 8, kColBlocks = Tiles::kWarpN / 8;

  double sums[kRowBlocks][kColBlocks][2] = {};

  __device__ __forceinline__ void multiply(typename Tiles::Stage& stage, bool, bool) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int m0 = warp / 2 * Tiles::kWarpM + lane / 4, n0 = warp % 2 * Tiles::kWarpN + lane / 4;
#pragma unroll
    for (int k = 0; k < Tiles::kDepth; k += 4) {
      double a[kRowBlocks], b[kColBlocks];
#pragma unroll
      for (int i = 0; i < kRowBlocks; ++i) a[i] = *stage.a.at(k + lane % 4, m0 + 8 * i);
#pragma unroll
      for (int j = 0; j < kColBlocks; ++j) b[j] = *stage.b.at(k + lane % 4, n0 + 8 * j);
#pragma unroll
      for (int i = 0; i < kRowBlocks; ++i) {
#pragma unroll
        for (int j = 0; j < kColBlocks; ++j) mma_m8n8k4_f64(sums[i][j], a[i], b[j]);
      }
    }
  }

  __device__ __forceinline__ void write_slab(Slab& slab, int half) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < kColBlocks; ++j) {
        const double (&two)[2] = sums[2 * half + i][j];
        store_pack(&slab.value[8 * i + lane / 4][8 * j + lane % 4 * 2], Pack<double, 2>{{two[0], two[1]}});
      }
    }
  }
};

}  // namespace drupe::cuda
