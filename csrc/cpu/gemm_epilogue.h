// The end of a product for the common case of whole tiles: activation(tile + bias + residual).
#pragma once

#include "cpu/activation.h"
#include "cpu/gemm_core.h"
#include "cpu/lanes.h"

namespace drupe::cpu {

// Rows of a tile that is GemmTile::kCols wide; y may be where the tile lies. All pointers are at the tile.
template <Isa I, class S>
struct TileEnd {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  static constexpr int kVectors = GemmTile<I, T>::kVectors;
  const S* bias;
  const S* residual;  // or null
  std::int64_t residual_row;
  S* y;
  std::int64_t y_row;

  template <Activation A>
  void write(std::int64_t rows, const T* tile, std::int64_t tile_row) const {
    if (residual) {
      run<A, true>(rows, tile, tile_row);
    } else {
      run<A, false>(rows, tile, tile_row);
    }
  }

 private:
  template <Activation A, bool kResidual>
  void run(std::int64_t rows, const T* tile, std::int64_t tile_row) const {
    V row[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) row[j] = load<V>(bias + j * V::kLanes, AllLanes{});
    for (std::int64_t i = 0; i < rows; ++i) {
      const S* added = residual + (kResidual ? i * residual_row : 0);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        V x = V::load(tile + i * tile_row + j * V::kLanes) + row[j];
        if constexpr (kResidual) {
          x = x + load<V>(added + j * V::kLanes, AllLanes{});
          // The tile below comes next, and only a product away: strided rows are not foreseen by the processor.
          __builtin_prefetch(added + GemmTile<I, T>::kRows * residual_row + j * V::kLanes);
        }
        store(activate<A>(x), y + i * y_row + j * V::kLanes, AllLanes{});
      }
    }
  }
};

}  // namespace drupe::cpu
