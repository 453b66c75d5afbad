// Matrix products on the tensor cores, mma.m16n8: fragments, how a warp loads them from swizzled tiles, and the product
// of a warp's tile. An operand's fragment has 32 bytes of k: 16 elements of a 16-bit format, 32 of int8, 8 of tf32.
// With g = lane / 4 and t = lane % 4, a lane holds of a 16 x 8 accumulator the elements (g, 2t), (g, 2t + 1), (g + 8,
// 2t), (g + 8, 2t + 1).
#pragma once

#include <platform/device.cuh>
#include <platform/ptx.cuh>
#include <type_traits>

#include "cuda/tile/swizzle.cuh"

namespace drupe::cuda {

// 16 rows of the left operand.
struct FragmentA {
  std::uint32_t x[4];
};
// 8 columns of the right operand.
struct FragmentB {
  std::uint32_t x[2];
};

// Two elements in a register, the first in the low half.
template <class T>
__device__ __forceinline__ std::uint32_t pack_pair(float first, float second) {
  return static_cast<std::uint32_t>(narrow<T>(first).bits) | static_cast<std::uint32_t>(narrow<T>(second).bits) << 16;
}

// d += a b for 32 bytes of k.
template <class T, class D>
__device__ __forceinline__ void mma_m16n8(D (&d)[4], const FragmentA& a, const FragmentB& b) {
  if constexpr (std::is_same_v<T, std::int8_t>) {
    mma_m16n8k32_s8(d, a.x, b.x);
  } else if constexpr (std::is_same_v<T, float>) {
    mma_m16n8k8_tf32(d, a.x, b.x);
  } else {
    mma_m16n8k16(d, a.x, b.x, T{});
  }
}

// A(m0 … m0 + 15, k0 … ), 32 bytes of k, from a tile that holds A(m, k) at row m, column k, or with kTransposed (16-bit
// formats) at row k, column m.
template <bool kTransposed, class Tile>
__device__ __forceinline__ FragmentA load_a(Tile& tile, int m0, int k0) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int matrix = lane / 8, i = lane % 8;  // matrices: the upper and lower half of the first 8 of k, then the others
  const int m = m0 + matrix % 2 * 8;
  FragmentA fragment;
  ldmatrix_x4<kTransposed>(fragment.x, kTransposed ? tile.chunk(k0 + matrix / 2 * 8 + i, m / 8)
                                                   : tile.chunk(m + i, k0 / Tile::kPack + matrix / 2));
  return fragment;
}

// B(k0 …, n0 … n0 + 15), 32 bytes of k, as two fragments of 8 columns, from a tile that holds B(k, n) at row k, column
// n (16-bit formats), or with kTransposed at row n, column k.
template <bool kTransposed, class Tile>
__device__ __forceinline__ void load_b(FragmentB (&fragments)[2], Tile& tile, int k0, int n0) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int matrix = lane / 8, i = lane % 8;  // matrices: both halves of k of the first 8 columns, then of the others
  const int n = n0 + matrix / 2 * 8;
  std::uint32_t x[4];
  ldmatrix_x4<!kTransposed>(
      x, kTransposed ? tile.chunk(n + i, k0 / Tile::kPack + matrix % 2) : tile.chunk(k0 + matrix % 2 * 8 + i, n / 8));
  fragments[0] = {{x[0], x[1]}};
  fragments[1] = {{x[2], x[3]}};
}

// A warp's kM x kN accumulators, of D: float, or for int8 std::int32_t.
template <int kM, int kN, class D = float>
struct WarpTile {
  static_assert(kM % 16 == 0 && kN % 16 == 0);
  static constexpr int kRowBlocks = kM / 16, kColBlocks = kN / 8;

  D d[kRowBlocks][kColBlocks][4];

  __device__ __forceinline__ void fill(D value) {
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < kColBlocks; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) d[i][j][e] = value;
      }
    }
  }

  // This lane's element e of block (i, j) lies at row row_of(i, e), column col_of(j, e) of the tile.
  __device__ __forceinline__ static int row_of(int i, int e) {
    return 16 * i + static_cast<int>(threadIdx.x) % 32 / 4 + e / 2 * 8;
  }
  __device__ __forceinline__ static int col_of(int j, int e) {
    return 8 * j + static_cast<int>(threadIdx.x) % 4 * 2 + e % 2;
  }

  // += a b for 32 bytes of k.
  template <class T>
  __device__ __forceinline__ void multiply(const FragmentA (&a)[kRowBlocks], const FragmentB (&b)[kColBlocks]) {
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < kColBlocks; ++j) mma_m16n8<T>(d[i][j], a[i], b[j]);
    }
  }

  // Its columns 16 c … 16 c + 15, rows 16 i … 16 i + 15, rounded to T, as the left operand of a next product (k = 16 c
  // …).
  template <class T>
  __device__ __forceinline__ FragmentA as_a(int i, int c) const {
    const float (&low)[4] = d[i][2 * c];
    const float (&high)[4] = d[i][2 * c + 1];
    return {{pack_pair<T>(low[0], low[1]), pack_pair<T>(low[2], low[3]), pack_pair<T>(high[0], high[1]),
             pack_pair<T>(high[2], high[3])}};
  }
};

// The fragments of kM rows (from m0) and of kN columns (from n0), 32 bytes of k from k0.
template <bool kTransposed, int kBlocks, class Tile>
__device__ __forceinline__ void load_a_blocks(FragmentA (&fragments)[kBlocks], Tile& tile, int m0, int k0) {
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) fragments[i] = load_a<kTransposed>(tile, m0 + 16 * i, k0);
}
template <bool kTransposed, int kBlocks, class Tile>
__device__ __forceinline__ void load_b_blocks(FragmentB (&fragments)[kBlocks], Tile& tile, int k0, int n0) {
  static_assert(kBlocks % 2 == 0);
#pragma unroll
  for (int j = 0; j < kBlocks; j += 2) {
    FragmentB pair[2];
    load_b<kTransposed>(pair, tile, k0, n0 + 8 * j);
    fragments[j] = pair[0];
    fragments[j + 1] = pair[1];
  }
}

}  // namespace drupe::cuda
