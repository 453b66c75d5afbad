// The end of a product: activation(alpha tile + bias + residual), and faster the common case of whole tiles.
#pragma once

#include "core/caches.h"
#include "cpu/activation.h"
#include "cpu/gemm_bf16.h"
#include "cpu/lanes.h"
#include "ops/gemm.h"

namespace drupe::cpu {

// Whether a result of so many bytes goes past the caches, since much of it would leave them before it is read.
template <Isa>
bool leaves_caches(std::int64_t bytes) {
  return bytes > caches().l3 / 6;
}

// Whether rows so many elements apart begin at whole lines, or are none.
template <Isa, class S>
bool fills_lines(const S* y, std::int64_t row) {
  constexpr std::int64_t kLine = 64;
  return reinterpret_cast<std::uintptr_t>(y) % kLine == 0 && row * static_cast<std::int64_t>(sizeof(S)) % kLine == 0;
}

// Where a tile is a few numbers wide, there is nothing to gain.
template <Isa I>
inline constexpr bool kHasTileEnd = I != Isa::scalar;

// Rows of a tile that is GemmTile::kCols wide; y may be where the tile lies. All pointers are at the tile.
template <Isa I, class S>
struct TileEnd {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  static constexpr int kVectors = GemmTile<I, T>::kVectors;
  const S* bias;  // or null, as
  const S* residual;
  std::int64_t residual_row;
  S* pre_activation;  // where to write what the activation is applied to, in rows as y's; or null
  S* y;
  std::int64_t y_row;
  bool stream;  // past the caches, where rows are whole lines and the tile lies apart: the caller owes a stream_fence

  template <Activation A>
  void write(std::int64_t rows, const T* tile, std::int64_t tile_row) const {
    const bool aligned = fills_lines<I>(y, y_row) && fills_lines<I>(pre_activation, y_row);
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
    for (int j = 0; j < kVectors; ++j) {
      row[j] = bias ? load<V>(bias + j * V::kLanes, AllLanes{}) : V::set(T(-0.0));  // which changes nothing
    }
    const bool by_instruction = kPairs<I, S> && has_bf16_dot<I>();
    for (std::int64_t i = 0; i < rows; ++i) {
      const S* added = residual + (kResidual ? i * residual_row : 0);
      V x[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        x[j] = V::load(tile + i * tile_row + j * V::kLanes) + row[j];
        if constexpr (kResidual) x[j] = x[j] + load<V>(added + j * V::kLanes, AllLanes{});
      }
      if (pre_activation) put<kStream>(x, pre_activation + i * y_row, by_instruction);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) x[j] = activate<A>(x[j]);
      put<kStream>(x, y + i * y_row, by_instruction);
    }
  }

  // A row of the tile.
  template <bool kStream>
  DRUPE_INLINE static void put(const V* x, S* to, [[maybe_unused]] bool by_instruction) {
    if constexpr (kPairs<I, S>) {
      if (by_instruction) {
        const V pairs = PairProduct<I>::pair(x[0], x[1]);
        auto* words = reinterpret_cast<float*>(to);
        kStream ? pairs.stream(words) : pairs.store(words);
        return;
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
};

// One matrix of the batch.
template <class S>
struct Problem {
  const S* a;
  const S* b;
  S* y;
  const S* residual;
  S* pre_activation;
  const S* saved = nullptr;
  bool stream = false;  // as TileEnd's
};

// The first `count` lanes, from elements `stride` apart.
template <Isa I, class S>
[[gnu::noinline]] Vec<Accumulator<S>, I> load_strided(const S* from, std::int64_t stride, std::int64_t count) {
  using V = Vec<Accumulator<S>, I>;
  Accumulator<S> values[V::kLanes] = {};
  for (std::int64_t k = 0; k < std::min<std::int64_t>(V::kLanes, count); ++k) {
    values[k] = static_cast<Accumulator<S>>(from[k * stride]);
  }
  return V::load(values);
}

// The residual of the vector at (row, col), which is the last of `cols` columns if it is not whole.
template <Isa I, class S, class Lanes>
DRUPE_INLINE Vec<Accumulator<S>, I> residual_at(const GemmArgs& args, const Problem<S>& problem, std::int64_t row,
                                                std::int64_t col, std::int64_t cols, Lanes lanes) {
  using V = Vec<Accumulator<S>, I>;
  const S* source = problem.residual + row * args.residual_row + col * args.residual_col;
  return args.residual_col == 1 ? load<V>(source, lanes) : load_strided<I>(source, args.residual_col, cols);
}

// y = activation(alpha tile + bias + residual) on one finished tile; y may be where the tile lies.
template <Isa I, class S, Activation A>
void epilogue(const GemmArgs& args, const Problem<S>& problem, std::int64_t row0, std::int64_t col0, std::int64_t rows,
              std::int64_t cols, const Accumulator<S>* tile, std::int64_t tile_row) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const bool whole = cols == GemmTile<I, T>::kCols;
  if (kHasTileEnd<I> && whole && args.alpha == 1 && (!problem.residual || args.residual_col == 1)) {
    const S* bias = args.bias ? static_cast<const S*>(args.bias) + col0 : nullptr;
    const S* residual = problem.residual ? problem.residual + row0 * args.residual_row + col0 : nullptr;
    S* pre_activation = problem.pre_activation ? problem.pre_activation + row0 * args.N + col0 : nullptr;
    const TileEnd<I, S> end{bias,   residual,      args.residual_row, pre_activation, problem.y + row0 * args.N + col0,
                            args.N, problem.stream};
    end.template write<A>(rows, tile, tile_row);
    return;
  }
  const V alpha = V::set(static_cast<T>(args.alpha));
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t at = (row0 + i) * args.N + col0;
    for_vectors<I, T>(cols, [&](std::int64_t j, auto lanes) {
      V x = alpha * load<V>(tile + i * tile_row + j, lanes);
      if (args.bias) x = x + load<V>(static_cast<const S*>(args.bias) + col0 + j, lanes);
      if (problem.residual) x = x + residual_at<I>(args, problem, row0 + i, col0 + j, cols - j, lanes);
      if (problem.pre_activation) store(x, problem.pre_activation + at + j, lanes);
      store(activate<A>(x), problem.y + at + j, lanes);
    });
  }
}

// y = activation'(saved) (alpha tile + residual) on one finished tile; y may be where the tile lies. Writes the sums of
// its columns, if they are wanted.
template <Isa I, class S>
[[gnu::noinline]] void differentiate(const GemmArgs& args, const Problem<S>& problem, std::int64_t row0,
                                     std::int64_t col0, std::int64_t rows, std::int64_t cols,
                                     const Accumulator<S>* tile, std::int64_t tile_row, Accumulator<S>* sums) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const std::int64_t corner = row0 * args.N + col0;
  const S* saved = problem.saved + corner;
  S* y = problem.y + corner;
  const bool past = problem.stream && fills_lines<I>(y, args.N) && static_cast<const void*>(tile) != y;
  const V alpha = V::set(static_cast<T>(args.alpha));
  dispatch_activation(args.activation, [&]<Activation A>() {
    const auto value = [&](std::int64_t i, std::int64_t j, auto lanes) __attribute__((always_inline)) {
      V x = alpha * load<V>(tile + i * tile_row + j, lanes);
      if (problem.residual) x = x + residual_at<I>(args, problem, row0 + i, col0 + j, cols - j, lanes);
      return x * activation_derivative<A>(load<V>(saved + i * args.N + j, lanes));
    };
    std::int64_t j = 0;
    if constexpr (kPairs<I, S>) {
      for (; has_bf16_dot<I>() && j + 2 * V::kLanes <= cols; j += 2 * V::kLanes) {
        V sum0 = V::zero(), sum1 = V::zero();
        for (std::int64_t i = 0; i < rows; ++i) {
          const V x0 = value(i, j, AllLanes{}), x1 = value(i, j + V::kLanes, AllLanes{});
          const V pairs = PairProduct<I>::pair(x0, x1);
          auto* to = reinterpret_cast<T*>(y + i * args.N + j);
          past ? pairs.stream(to) : pairs.store(to);
          sum0 = sum0 + x0, sum1 = sum1 + x1;
        }
        if (sums) sum0.store(sums + j), sum1.store(sums + j + V::kLanes);
      }
    }
    for_vectors<I, T>(cols - j, [&](std::int64_t part, auto lanes) {
      V sum = V::zero();
      for (std::int64_t i = 0; i < rows; ++i) {
        const V x = value(i, j + part, lanes);
        S* to = y + i * args.N + j + part;
        if constexpr (std::is_same_v<S, T> && std::is_same_v<decltype(lanes), AllLanes>) {
          past ? x.stream(to) : x.store(to);
        } else {
          store(x, to, lanes);
        }
        sum = sum + x;
      }
      if (sums) store(sum, sums + j + part, lanes);
    });
  });
}

}  // namespace drupe::cpu
