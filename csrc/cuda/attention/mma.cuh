// Attention's products of 16-bit tiles by mma.m16n8k16: operands in swizzled shared memory, and what a warp does with
// them. Left operands are a warp's own 16 kBlocks rows; right ones are the rows of a tile that streams by.
#pragma once

#include "cuda/attention/problem.cuh"
#include "cuda/tile/load.cuh"
#include "cuda/tile/mma.cuh"
#include "cuda/tile/reduce.cuh"

namespace drupe::cuda {

// kRows rows of a head, kWidth wide, as slabs of columns that a swizzle spans.
template <class T, int kRows, int kWidth>
struct OperandTile {
  static constexpr int kSlab = kWidth % 64 == 0 ? 64 : 32;
  static constexpr int kChunks = kSlab / 8;
  SwizzledTile<T, kRows, kSlab> slabs[kWidth / kSlab];

  __device__ __forceinline__ T* chunk(int row, int index) { return slabs[index / kChunks].chunk(row, index % kChunks); }

  // Begins to copy the rows from row0 on; zeros from row `end` and column from.width on.
  template <int kThreads>
  __device__ __forceinline__ void load(const Rows<const T>& from, std::int64_t row0, std::int64_t end) {
#pragma unroll
    for (int s = 0; s < kWidth / kSlab; ++s) {
      const T* const data = from.data + row0 * from.stride + s * kSlab;
      if (from.aligned) {
        load_vectors<kThreads>(slabs[s], data, from.stride, end - row0, from.width - s * kSlab);
      } else {
        load_elements<kThreads>(slabs[s], data, from.stride, 1, end - row0, from.width - s * kSlab);
      }
    }
  }
};

// sum = left right^T: of the left tile's rows from row0 on and all rows of the right one.
template <class T, int kWidth, int kM, int kN, class Left, class Right>
__device__ __forceinline__ void multiply_over_width(WarpTile<kM, kN>& sum, Left& left, int row0, Right& right) {
  sum.fill(0.0f);
#pragma unroll
  for (int k = 0; k < kWidth; k += 16) {
    FragmentA a[kM / 16];
    load_a_blocks<false>(a, left, row0, k);
#pragma unroll
    for (int n = 0; n < kN; n += 16) {
      FragmentB b[2];
      load_b<true>(b, right, k, n);
#pragma unroll
      for (int i = 0; i < kM / 16; ++i) {
        mma_m16n8k16(sum.d[i][n / 8], a[i].x, b[0].x, T{});
        mma_m16n8k16(sum.d[i][n / 8 + 1], a[i].x, b[1].x, T{});
      }
    }
  }
}

// sum += weights right: the weights, rounded to T, times the right tile's rows, columns column0 … column0 + kN.
template <class T, int kM, int kK, int kN, class Right>
__device__ __forceinline__ void multiply_over_rows(WarpTile<kM, kN>& sum, const WarpTile<kM, kK>& weights, Right& right,
                                                   int column0) {
#pragma unroll
  for (int k = 0; k < kK; k += 16) {
    FragmentA a[kM / 16];
#pragma unroll
    for (int i = 0; i < kM / 16; ++i) a[i] = weights.template as_a<T>(i, k / 16);
#pragma unroll
    for (int n = 0; n < kN; n += 16) {
      FragmentB b[2];
      load_b<false>(b, right, k, column0 + n);
#pragma unroll
      for (int i = 0; i < kM / 16; ++i) {
        mma_m16n8k16(sum.d[i][n / 8], a[i].x, b[0].x, T{});
        mma_m16n8k16(sum.d[i][n / 8 + 1], a[i].x, b[1].x, T{});
      }
    }
  }
}

// The rows [row0, end) of `to`, columns from column0 on; a lane's row r of block i comes times factor[i][r].
template <class T, int kM, int kN>
__device__ __forceinline__ void store_rows(const WarpTile<kM, kN>& sum, const float (&factor)[kM / 16][2],
                                           const Rows<T>& to, std::int64_t row0, std::int64_t end,
                                           std::int64_t column0) {
  const bool pairs = reinterpret_cast<std::uintptr_t>(to.data) % 4 == 0 && to.stride % 2 == 0 && to.width % 2 == 0;
#pragma unroll
  for (int i = 0; i < kM / 16; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::int64_t row = row0 + sum.row_of(i, 2 * r);
      if (row >= end) break;
      T* const line = to.data + row * to.stride;
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
        const std::int64_t column = column0 + sum.col_of(j, 0);
        const float x = sum.d[i][j][2 * r] * factor[i][r], y = sum.d[i][j][2 * r + 1] * factor[i][r];
        if (pairs) {
          if (column < to.width) *reinterpret_cast<std::uint32_t*>(line + column) = pack_pair<T>(x, y);
        } else {
          if (column < to.width) line[column] = narrow<T>(x);
          if (column + 1 < to.width) line[column + 1] = narrow<T>(y);
        }
      }
    }
  }
}

// Calls f.operator()<T, kWidth>() for the narrowest padded head dimension, up to kMostWidth, that holds `width`.
inline constexpr std::int64_t kMostWidth = 256;
template <class F>
void dispatch_width(Dtype dtype, std::int64_t width, F&& f) {
  const auto with_type = [&]<class T>() {
    if (width <= 32) return f.template operator()<T, 32>();
    if (width <= 64) return f.template operator()<T, 64>();
    if (width <= 96) return f.template operator()<T, 96>();
    if (width <= 128) return f.template operator()<T, 128>();
    if (width <= 192) return f.template operator()<T, 192>();
    f.template operator()<T, 256>();
  };
  dtype == Dtype::f16 ? with_type.template operator()<Float16>() : with_type.template operator()<BFloat16>();
}

}  // namespace drupe::cuda
