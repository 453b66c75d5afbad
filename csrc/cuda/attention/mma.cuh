// Attention's products of 16-bit tiles by mma.m16n8k16: operands in swizzled shared memory, and what a warp does with
// them. Left operands are a warp's own 16 kBlocks rows; right ones are the rows of a tile that streams by.
#pragma once

#include "cuda/attention/problem.cuh"
#include "cuda/tile/mma.cuh"
#include "cuda/tile/reduce.cuh"

namespace drupe::cuda {

// kRows rows of a head, kWidth wide, as slabs of columns that a swizzle spans.
template <class T, int kRows, int kWidth>
struct OperandTile {
  static constexpr int kSlab = kWidth % 64 == 0 ? 64 : 32;
  static constexpr int kChunks = kSlab / 8;
  SwizzledTile<T, kRows, kSlab> slabs[kWidth / kSlab];

  // Begins to copy rows; zeros from row `rows` and column from.width on. They must be aligned. A thread keeps its
  // column, and one pointer walks down, so that few addresses live in registers.
  template <int kThreads>
  __device__ __forceinline__ void load(const Rows<const T>& from, int rows) {
    constexpr int kStep = kThreads / kChunks;
    static_assert(kRows % kStep == 0);
    const int row = static_cast<int>(threadIdx.x) / kChunks, index = static_cast<int>(threadIdx.x) % kChunks;
    const int width = static_cast<int>(from.width) - index * 8;
    const T* line = from.data + row * from.stride + index * 8;
#pragma unroll
    for (int r = 0; r < kRows; r += kStep) {
#pragma unroll
      for (int s = 0; s < kWidth / kSlab; ++s) {
        const bool valid = row + r < rows && s * kSlab < width;
        cp_async<16>(slabs[s].chunk(row + r, index), valid ? line + s * kSlab : from.data, valid);
      }
      line += kStep * from.stride;
    }
  }

  // Where the 16 x 16 block lies that a warp loads as four 8 x 8 matrices, the lane's row of the matrix of its octet:
  // the second matrix is the one below the first with kDown, the one to its right otherwise. Blocks differ by
  // constants, which the swizzle XORs where they are columns: so all addresses come from one register.
  template <bool kDown>
  static __device__ __forceinline__ int lane_offset(int row0) {
    const int lane = static_cast<int>(threadIdx.x) % 32, first = lane / 8 % 2, second = lane / 16;
    const int row = row0 + (kDown ? first : second) * 8 + lane % 8;
    return row * kSlab * 2 + swizzled_chunk<kChunks>(row, kDown ? second : first) * 16;
  }
  // The block at `row` (beside row0) and `column`, multiples of 16.
  __device__ __forceinline__ const void* block(int lane_offset, int row, int column) const {
    const int within = lane_offset ^ (column % kSlab * 2);
    return reinterpret_cast<const char*>(slabs) + within + (column / kSlab * kRows + row) * kSlab * 2;
  }
};

// sum += a b for one 16-deep step and 16 columns from n on.
template <class T, int kM, int kN>
__device__ __forceinline__ void multiply_block(WarpTile<kM, kN>& sum, const FragmentA (&a)[kM / 16],
                                               const std::uint32_t (&b)[4], int n) {
  const std::uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
#pragma unroll
  for (int i = 0; i < kM / 16; ++i) {
    mma_m16n8k16(sum.d[i][n / 8], a[i].x, low, T{});
    mma_m16n8k16(sum.d[i][n / 8 + 1], a[i].x, high, T{});
  }
}

// sum = left right^T: of the left tile's rows from row0 on and all rows of the right one.
template <class T, int kWidth, int kLeft, int kM, int kN>
__device__ __forceinline__ void multiply_over_width(WarpTile<kM, kN>& sum, const OperandTile<T, kLeft, kWidth>& left,
                                                    int row0, const OperandTile<T, kN, kWidth>& right) {
  sum.fill(0.0f);
  const int of_left = left.template lane_offset<true>(row0), of_right = right.template lane_offset<false>(0);
#pragma unroll
  for (int k = 0; k < kWidth; k += 16) {
    FragmentA a[kM / 16];
#pragma unroll
    for (int i = 0; i < kM / 16; ++i) ldmatrix_x4(a[i].x, left.block(of_left, 16 * i, k));
#pragma unroll
    for (int n = 0; n < kN; n += 16) {
      std::uint32_t b[4];
      ldmatrix_x4(b, right.block(of_right, n, k));
      multiply_block<T>(sum, a, b, n);
    }
  }
}

// sum += weights right: the weights, rounded to T, times the right tile's rows, columns column0 … column0 + kN.
template <class T, int kWidth, int kM, int kK, int kN>
__device__ __forceinline__ void multiply_over_rows(WarpTile<kM, kN>& sum, const WarpTile<kM, kK>& weights,
                                                   const OperandTile<T, kK, kWidth>& right, int column0) {
  const int of_right = right.template lane_offset<true>(0);
#pragma unroll
  for (int k = 0; k < kK; k += 16) {
    FragmentA a[kM / 16];
#pragma unroll
    for (int i = 0; i < kM / 16; ++i) a[i] = weights.template as_a<T>(i, k / 16);
#pragma unroll
    for (int n = 0; n < kN; n += 16) {
      std::uint32_t b[4];
      ldmatrix_x4<true>(b, right.block(of_right, k, column0 + n));
      multiply_block<T>(sum, a, b, n);
    }
  }
}

// Products to logits in units of log 2. `bias` and the mask count from the lane's first query and key on; queries are
// the rows, or with kKeysOwn the keys are. One pointer walks along each row, and a barrier ends it: all addresses and
// loads at once would take too many registers.
template <bool kKeysOwn, class T, int kM, int kN>
__device__ __forceinline__ void scale_and_add_bias(WarpTile<kM, kN>& logits, const AttentionArgs& args,
                                                   const Mask& mask, const T* bias) {
  const float factor = static_cast<float>(args.scale * kLog2E);
#pragma unroll
  for (int i = 0; i < kM / 16; ++i) {
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) logits.d[i][j][e] *= factor;
    }
  }
  if (!bias) return;
#pragma unroll
  for (int down = 0; down < kM; down += 8) {
    const T* at = bias;
#pragma unroll
    for (int n = 0; n < kN / 4; ++n) {
      const int right = n / 2 * 8 + n % 2;
      if (kKeysOwn ? mask.sees(right, down) : mask.sees(down, right)) {
        logits.d[down / 16][n / 2][down % 16 / 4 + n % 2] += static_cast<float>(kLog2E) * widen(*at);
      }
      at += (n % 2 == 0 ? 1 : 7) * (kKeysOwn ? args.bias_row : args.bias_col);
    }
    bias += 8 * (kKeysOwn ? args.bias_col : args.bias_row);
    __syncwarp();
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
