// bfloat16 products by AVX512-BF16's dot instruction. An element of gemm_core's panels is a pair of neighbours along k,
// in the 32 bits of a float: one instruction adds both products, and K counts pairs.
#pragma once

#include <bit>

#include "cpu/gemm_core.h"
#include "cpu/simd_bf16.h"

namespace drupe::cpu {

DRUPE_INLINE float bf16_pair(BFloat16 low, BFloat16 high) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(high.bits) << 16 | low.bits);
}

template <class P>
inline constexpr bool kMultipliesPairs = !std::is_same_v<P, Product>;

// Calls f(product): how this processor multiplies S.
template <Isa I, class S, class F>
auto with_product(const F& f) {
  if constexpr (kPairs<I, S>) {
    if (has_bf16_dot<I>()) return f(PairProduct<I>());
  }
  return f(Product());
}

// to[i] = the pair of low[i] and high[i]
template <Isa I>
void interleave(float* to, const BFloat16* low, const BFloat16* high, std::int64_t n) {
  std::int64_t i = 0;
  if constexpr (I == Isa::avx512) {
    using V = Vec<float, I>;
    for (; i + V::kLanes <= n; i += V::kLanes) V::load_pairs(low + i, high + i).store(to + i);
  }
  for (; i < n; ++i) to[i] = bf16_pair(low[i], high[i]);
}

// A strided matrix of K columns as an operand: element (i, k) at data[i * row + k * col].
template <Isa I>
struct PairedMatrix {
  using Tile = GemmTile<I, float>;
  const BFloat16* data;
  std::int64_t row, col, K;

  // Whether pairs of neighbours are elements of a matrix of floats, since they lie on such boundaries.
  bool paired() const {
    return col == 1 && row % 2 == 0 && K % 2 == 0 && reinterpret_cast<std::uintptr_t>(data) % 4 == 0;
  }

  RowsInPlace<float> in_place() const {
    if (!paired() || !RowsInPlace<float>::fit(row / 2, Tile::kRows)) return {};
    return {reinterpret_cast<const float*>(data), row / 2};
  }

  // k0 and depth in pairs.
  void pack_rows(float* panel, std::int64_t row0, std::int64_t rows, std::int64_t k0, std::int64_t depth) const {
    for (std::int64_t i = 0; i < rows; ++i) along(panel + i * Tile::kPanelStride, row0 + i, k0, depth);
  }

  bool by_depth() const { return row == 1 && col != 1; }
  void pack_by_depth(float* panels, std::int64_t row0, std::int64_t rows, std::int64_t k0, std::int64_t depth) const {
    using V = Vec<float, I>;
    for (std::int64_t k = k0; k < k0 + depth; ++k, panels += Tile::kRows) {
      const BFloat16* low = data + row0 + 2 * k * col;
      for_panels_by_depth<Tile, V::kLanes>(rows, [&](std::int64_t m, std::int64_t panel, bool whole) {
        for (int odd = 0; odd < 2; ++odd) __builtin_prefetch(low + (2 * kLinesAhead + odd) * col + m);
        if constexpr (I == Isa::avx512) {
          if (whole && 2 * k + 1 < K) {
            V::load_pairs(low + m, low + col + m).store(panels + panel);
            return;
          }
        }
        across(panels + panel, row0 + m, std::min<std::int64_t>(Tile::kRows, rows - m), k);
      });
    }
  }

  // As ColumnPanels::fill's pack, of the transposed matrix.
  void pack_cols(float* panel, std::int64_t col0, std::int64_t cols, std::int64_t k0, std::int64_t depth) const {
    if (paired()) {
      const StridedMatrix<I, float> pairs{reinterpret_cast<const float*>(data), row / 2, 1};
      return pairs.pack_cols(panel, col0, cols, k0, depth);
    }
    if (cols < Tile::kCols) std::memset(panel, 0, static_cast<std::size_t>(depth * Tile::kCols) * sizeof(float));
    if (col == 1 && row != 1) {
      transpose_lines<I>(
          panel, Tile::kCols, cols, depth,
          [&](float* to, std::int64_t j, std::int64_t k, std::int64_t n) { along(to, col0 + j, k0 + k, n); });
    } else {
      constexpr std::int64_t kAhead = 12;  // pairs of rows, each of which is a line of its own
      for (std::int64_t k = 0; k < depth; ++k) {
        for (int odd = 0; odd < 2; ++odd) __builtin_prefetch(data + col0 * row + (2 * (k0 + k + kAhead) + odd) * col);
        across(panel + k * Tile::kCols, col0, cols, k0 + k);
      }
    }
  }

 private:
  // Pairs k0 … k0 + n - 1 of row i.
  void along(float* to, std::int64_t i, std::int64_t k0, std::int64_t n) const {
    const BFloat16* from = data + i * row + 2 * k0 * col;
    const std::int64_t whole = std::min(n, (K - 2 * k0) / 2);
    if (col == 1) {
      std::memcpy(to, from, static_cast<std::size_t>(whole) * sizeof(float));
    } else {
      for (std::int64_t k = 0; k < whole; ++k) to[k] = bf16_pair(from[2 * k * col], from[(2 * k + 1) * col]);
    }
    if (whole < n) to[whole] = bf16_pair(from[2 * whole * col], {});
  }

  // Pair k of rows i0 … i0 + n - 1.
  void across(float* to, std::int64_t i0, std::int64_t n, std::int64_t k) const {
    const BFloat16* low = data + i0 * row + 2 * k * col;
    const BFloat16* high = low + col;
    if (2 * k + 1 == K) {
      for (std::int64_t i = 0; i < n; ++i) to[i] = bf16_pair(low[i * row], {});
    } else if (row == 1) {
      interleave<I>(to, low, high, n);
    } else {
      for (std::int64_t i = 0; i < n; ++i) to[i] = bf16_pair(low[i * row], high[i * row]);
    }
  }
};

}  // namespace drupe::cpu
