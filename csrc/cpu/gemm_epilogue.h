// The end of a product for the common case of whole tiles: activation(tile + bias + residual).
#pragma once

#include "cpu/activation.h"
#include "cpu/gemm_bf16.h"
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
  bool stream;  // past the caches, where rows are whole lines and the tile lies apart: the caller owes a stream_fence

  template <Activation A>
  void write(std::int64_t rows, const T* tile, std::int64_t tile_row) const {
    constexpr std::int64_t kLine = 64;
    const bool aligned =
        reinterpret_cast<std::uintptr_t>(y) % kLine == 0 && y_row * static_cast<std::int64_t>(sizeof(S)) % kLine == 0;
    const bool past = stream && aligned && static_cast<const void*>(tile) != y;
    if (residual) {
      past ? run<A, true, true>(rows, tile, tile_row) : run<A, true, false>(rows, tile, tile_row);
    } else {
      past ? run<A, false, true>(rows, tile, tile_row) : run<A, false, false>(rows, tile, tile_row);
    }
  }

 private:
  template <Activation A, bool kResidual, bool kStream>
  void run(std::int64_t rows, const T* tile, std::int64_t tile_row) const {
    V row[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) row[j] = load<V>(bias + j * V::kLanes, AllLanes{});
    const bool by_instruction = kPairs<I, S> && has_bf16_dot<I>();
    for (std::int64_t i = 0; i < rows; ++i) {
      const S* added = residual + (kResidual ? i * residual_row : 0);
      V x[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        x[j] = V::load(tile + i * tile_row + j * V::kLanes) + row[j];
        if constexpr (kResidual) {
          x[j] = x[j] + load<V>(added + j * V::kLanes, AllLanes{});
          // The tile below comes next, and only a product away: strided rows are not foreseen by the processor.
          __builtin_prefetch(added + GemmTile<I, T>::kRows * residual_row + j * V::kLanes);
        }
        x[j] = activate<A>(x[j]);
      }
      S* to = y + i * y_row;
      if constexpr (kStream && kPairs<I, S>) {
        if (by_instruction) {
          stream_rounded(x[0], x[1], to);
          continue;
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        if constexpr (kStream && std::is_same_v<S, T>) {
          x[j].stream(to + j * V::kLanes);
        } else {
          store(x[j], to + j * V::kLanes, AllLanes{});
        }
      }
    }
  }
};

}  // namespace drupe::cpu
