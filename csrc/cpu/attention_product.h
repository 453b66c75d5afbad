// The register-blocked products of attention's two passes: the tile and its operands' layouts, the microkernel, and
// what it fetches for its successors meanwhile.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/gemm_core.h"
#include "cpu/simd_transpose.h"

namespace drupe::cpu {

// Register tile and the layout of a left operand: rows of at most kDepth at a stride that spreads over cache sets.
template <Isa I, class T>
struct AttentionTile {
  using V = Vec<T, I>;
  static constexpr int kRows = GemmTile<I, T>::kRows;
  static constexpr int kVectors = GemmTile<I, T>::kVectors;
  static constexpr int kCols = GemmTile<I, T>::kCols;
  static constexpr int kMostRows = kReducedRows;  // of a tile, or of a decoding step
  static constexpr std::int64_t kDepth = 1024 / sizeof(T);
  static constexpr std::int64_t kStride = kDepth + 64 / sizeof(T);
};

// Memory that will be needed soon, in pieces of kPieceBytes of a row. A product asks for a piece every kDepth
// steps, so that the misses lie under arithmetic and there are never more of them than the processor can track.
template <Isa>
class Ahead {
 public:
  static constexpr std::int64_t kDepth = 4;

  template <class S>
  DRUPE_INLINE void add_rows(const S* first, std::int64_t stride, std::int64_t rows, std::int64_t width) {
    constexpr auto kItem = static_cast<std::int64_t>(sizeof(S));
    const std::int64_t pieces = ceil_div(width * kItem, kPieceBytes);
    const std::int64_t fitting = pieces > 0 ? std::min(rows, room_ / pieces) : 0;
    if (fitting <= 0 || count_ == kRegions) return;
    room_ -= fitting * pieces;
    regions_[count_++] = {reinterpret_cast<const char*>(first), stride * kItem, fitting, pieces * kPieceBytes};
  }

  DRUPE_INLINE void step() {
    if (next_ == count_) return;
    Region& region = regions_[next_];
    const char* piece = region.row + at_;
#pragma GCC unroll 4
    for (std::int64_t i = 0; i < kPieceBytes; i += 64) __builtin_prefetch(piece + i, 0, 2);
    at_ += kPieceBytes;
    if (at_ < region.bytes) return;
    at_ = 0;
    region.row += region.stride;
    if (--region.rows == 0) ++next_;
  }

 private:
  struct Region {
    const char* row;
    std::int64_t stride, rows, bytes;
  };
  static constexpr std::int64_t kPieceBytes = 256, kRegions = 16;
  Region regions_[kRegions];
  int next_ = 0, count_ = 0;           // regions
  std::int64_t at_ = 0, room_ = 1024;  // bytes of a row; pieces: more would evict what is in use
};

// Where a product goes: c[i][j] = factors[i] * (the product + c[i][j] where `accumulate`), without factors as it is.
template <class T>
struct Sums {
  T* c = nullptr;
  std::int64_t row = 0;
  bool accumulate = false;
  const T* factors = nullptr;
};

// The sum over k of a[i][k] b[k][j], as P multiplies elements, for one register tile, kVectors wide. a's element (i, k)
// is at a[i * kStride + k], or at a[k * kStride + i] with kTransposed; b has rows of any stride.
template <Isa I, class P, class T, bool kTransposed, int kVectors, int kRows>
[[gnu::noinline]] void attention_microkernel(std::int64_t depth, const T* a, const T* b, std::int64_t b_row,
                                             const Sums<T>& to, Ahead<I>& ahead) {
  using Tile = AttentionTile<I, T>;
  using V = Vec<T, I>;
  V sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      sum[i][j] = to.accumulate ? V::load(to.c + i * to.row + j * V::kLanes) : V::zero();
    }
  }
  for (std::int64_t k = 0; k < depth;) {
    ahead.step();
    for (const std::int64_t pause = std::min(depth, k + Ahead<I>::kDepth); k < pause; ++k, b += b_row) {
      V row[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) row[j] = V::load(b + j * V::kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const V left = V::set(kTransposed ? a[k * Tile::kStride + i] : a[i * Tile::kStride + k]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sum[i][j] = P::add(left, row[j], sum[i][j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    const V factor = V::set(to.factors ? to.factors[i] : T(1));
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) (factor * sum[i][j]).store(to.c + i * to.row + j * V::kLanes);
  }
}

// Picks the microkernel for 1 <= rows <= kRows.
template <Isa I, class P, class T, bool kTransposed = false, int kVectors = AttentionTile<I, T>::kVectors,
          int kRows = AttentionTile<I, T>::kRows>
DRUPE_INLINE void multiply_tile(int rows, std::int64_t depth, const T* a, const T* b, std::int64_t b_row,
                                const Sums<T>& to, Ahead<I>& ahead) {
  if (rows == kRows) {
    attention_microkernel<I, P, T, kTransposed, kVectors, kRows>(depth, a, b, b_row, to, ahead);
  } else if constexpr (kRows > 1) {
    multiply_tile<I, P, T, kTransposed, kVectors, kRows - 1>(rows, depth, a, b, b_row, to, ahead);
  }
}

// The same where the depth spans several slices of the left operand, `slice` elements apart, and b is a panel.
template <Isa I, class P, int kVectors, class T>
DRUPE_INLINE void multiply_slices(int rows, std::int64_t depth, const T* a, std::int64_t slice, const T* panel, T* c,
                                  const T* factors, Ahead<I>& ahead) {
  using Tile = AttentionTile<I, T>;
  for (std::int64_t k = 0; k == 0 || k < depth; k += Tile::kDepth) {  // depth 0 gives zeros
    const bool last = k + Tile::kDepth >= depth;
    multiply_tile<I, P, T, false, kVectors>(rows, std::min(Tile::kDepth, depth - k), a + k / Tile::kDepth * slice,
                                            panel + k * Tile::kCols, Tile::kCols,
                                            Sums<T>{c, Tile::kStride, k > 0, last ? factors : nullptr}, ahead);
  }
}

// The columns [begin, end) of the product with panels of kCols columns, to rows of c at kStride, times the rows'
// factors if given: by whole panels, or by half ones at the ends where those will do.
template <Isa I, class P, class T>
DRUPE_INLINE void multiply_panels(int rows, std::int64_t depth, const T* a, std::int64_t slice, const T* panels,
                                  std::int64_t begin, std::int64_t end, T* c, const T* factors, Ahead<I>& ahead) {
  using Tile = AttentionTile<I, T>;
  constexpr std::int64_t kCols = Tile::kCols, kHalf = kCols / 2;
  for (std::int64_t j = begin / kCols * kCols; j < end; j += kCols) {
    const bool upper = begin >= j + kHalf, lower = end <= j + kHalf;
    const T* panel = panels + j * depth;
    if (upper || lower) {
      const std::int64_t offset = upper ? kHalf : 0;
      multiply_slices<I, P, Tile::kVectors / 2>(rows, depth, a, slice, panel + offset, c + j + offset, factors, ahead);
    } else {
      multiply_slices<I, P, Tile::kVectors>(rows, depth, a, slice, panel, c + j, factors, ahead);
    }
  }
}

}  // namespace drupe::cpu
