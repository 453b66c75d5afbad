// gemm_quantized. Few rows: a task owns one panel of columns and reads its integers once, in order; they become floats
// in registers, and the sum over a group is scaled when it is done. More rows: gemm_core, whose panels of B are packed
// from what the integers stand for. Worklog: bench/worklog/gemm.md.
#include "ops/gemm_quantized.h"

#include "core/dispatch.h"
#include "cpu/gemm_bf16.h"
#include "cpu/gemm_epilogue.h"
#include "cpu/gemm_few_rows.h"
#include "cpu/gemm_rows.h"
#include "cpu/simd_int8.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kHalf = kQuantizedCols / 2;  // columns whose four bits are the low ones of their bytes

// GemmTile's columns of a row, as vectors: `row` is at the byte of the first of them.
template <Isa I>
struct WholeBytes {
  DRUPE_INLINE static Vec<float, I> load(const std::uint8_t* row, int vector) {
    return FloatsOfBytes<I>::whole(row + vector * Vec<float, I>::kLanes);
  }
};
template <Isa I>
struct LowHalves {
  DRUPE_INLINE static Vec<float, I> load(const std::uint8_t* row, int vector) {
    return FloatsOfBytes<I>::low(row + vector * Vec<float, I>::kLanes);
  }
};
template <Isa I>
struct HighHalves {
  DRUPE_INLINE static Vec<float, I> load(const std::uint8_t* row, int vector) {
    return FloatsOfBytes<I>::high(row + vector * Vec<float, I>::kLanes);
  }
};
template <Isa I>
struct BothHalves {  // a register of each
  DRUPE_INLINE static Vec<float, I> load(const std::uint8_t* row, int vector) {
    return vector == 0 ? FloatsOfBytes<I>::low(row) : FloatsOfBytes<I>::high(row);
  }
};

// A weight as the kernels see it.
struct Weight {
  const std::uint8_t* values;
  const float* scales;
  std::int64_t K, group;
  int bits;

  std::int64_t row_bytes() const { return kQuantizedCols * bits / 8; }
  std::int64_t groups() const { return ceil_div(K, group); }
  const float* panel_scales(std::int64_t col) const {
    return scales + col / kQuantizedCols * groups() * kQuantizedCols + col % kQuantizedCols;
  }
  // Row 0 of the panel, at the byte of column col, a multiple of GemmTile's columns.
  const std::uint8_t* panel_values(std::int64_t col) const {
    const std::int64_t within = col % kQuantizedCols;
    return values + col / kQuantizedCols * K * row_bytes() + (bits == 8 ? within : within % kHalf);
  }

  // Calls f(how to load the columns from col on).
  template <Isa I, class F>
  void with_load(std::int64_t col, const F& f) const {
    if (bits == 8) {
      f(WholeBytes<I>());
    } else if constexpr (GemmTile<I, float>::kCols > kHalf) {
      f(BothHalves<I>());
    } else if (col % kQuantizedCols < kHalf) {
      f(LowHalves<I>());
    } else {
      f(HighHalves<I>());
    }
  }
};

// y[i][j] = sum over k of a[i][k] w[k][col + j] for kHeight rows and GemmTile's columns.
template <Isa I, class Load, int kHeight>
[[gnu::noinline]] void multiply_columns(const Weight& weight, std::int64_t col, const float* a, std::int64_t a_row,
                                        float* y, std::int64_t y_row) {
  using Tile = GemmTile<I, float>;
  using V = Vec<float, I>;
  constexpr int kSums = kHeight * Tile::kVectors, kTurns = (7 + kSums) / kSums;  // 8 hide the latency of an addition
  constexpr std::int64_t kAhead = 4096;  // bytes: beyond the page, where prefetchers end
  const std::int64_t row_bytes = weight.row_bytes();
  const std::uint8_t* row = weight.panel_values(col);
  const float* scale = weight.panel_scales(col);
  V total[kHeight][Tile::kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kHeight; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < Tile::kVectors; ++v) total[i][v] = V::zero();
  }
  for (std::int64_t k0 = 0; k0 < weight.K; k0 += weight.group, scale += kQuantizedCols) {
    const std::int64_t end = std::min(weight.K, k0 + weight.group);
    V sum[kTurns][kHeight][Tile::kVectors];
#pragma GCC unroll 4
    for (int t = 0; t < kTurns; ++t) {
#pragma GCC unroll 8
      for (int i = 0; i < kHeight; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < Tile::kVectors; ++v) sum[t][i][v] = V::zero();
      }
    }
    const auto add_row = [&](std::int64_t k, auto turn) __attribute__((always_inline)) {
      constexpr int kTurn = decltype(turn)::value;
      __builtin_prefetch(row + kAhead);
      V right[Tile::kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < Tile::kVectors; ++v) right[v] = Load::load(row, v);
#pragma GCC unroll 8
      for (int i = 0; i < kHeight; ++i) {
        const V left = V::set(a[i * a_row + k]);
#pragma GCC unroll 4
        for (int v = 0; v < Tile::kVectors; ++v) sum[kTurn][i][v] = fma(left, right[v], sum[kTurn][i][v]);
      }
      row += row_bytes;
    };
    std::int64_t k = k0;
    for (; k + kTurns <= end; k += kTurns) {
      add_row(k, std::integral_constant<int, 0>());
      if constexpr (kTurns > 1) add_row(k + 1, std::integral_constant<int, 1>());
      if constexpr (kTurns > 2) add_row(k + 2, std::integral_constant<int, 2>());
      if constexpr (kTurns > 2) add_row(k + 3, std::integral_constant<int, 3>());
    }
    for (; k < end; ++k) add_row(k, std::integral_constant<int, 0>());
#pragma GCC unroll 4
    for (int v = 0; v < Tile::kVectors; ++v) {
      const V factor = V::load(scale + v * V::kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kHeight; ++i) {
        V all = sum[0][i][v];
#pragma GCC unroll 4
        for (int t = 1; t < kTurns; ++t) all = all + sum[t][i][v];
        total[i][v] = fma(all, factor, total[i][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kHeight; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < Tile::kVectors; ++v) total[i][v].store(y + i * y_row + v * V::kLanes);
  }
}

// to[k * GemmTile::kCols + j] = w[k0 + k][col + j] for k < depth and GemmTile's columns.
template <Isa I, class S>
void dequantize(const Weight& weight, std::int64_t col, std::int64_t k0, std::int64_t depth, S* to) {
  using Tile = GemmTile<I, float>;
  using V = Vec<float, I>;
  weight.with_load<I>(col, [&]<class Load>(Load) {
    const std::uint8_t* row = weight.panel_values(col) + k0 * weight.row_bytes();
    const float* scales = weight.panel_scales(col);
    for (std::int64_t k = k0; k < k0 + depth;) {
      const std::int64_t group = k / weight.group, end = std::min(k0 + depth, (group + 1) * weight.group);
      V scale[Tile::kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < Tile::kVectors; ++v) scale[v] = V::load(scales + group * kQuantizedCols + v * V::kLanes);
      for (; k < end; ++k, row += weight.row_bytes(), to += Tile::kCols) {
#pragma GCC unroll 4
        for (int v = 0; v < Tile::kVectors; ++v) (Load::load(row, v) * scale[v]).store(to + v * V::kLanes);
      }
    }
  });
}

template <Isa I, class S, class Finish>
void multiply_few_rows(std::int64_t M, std::int64_t N, const Weight& weight, const S* a, const Finish& finish) {
  constexpr std::int64_t kCols = GemmTile<I, float>::kCols;
  const GatheredRows<float> rows(a, weight.K, 1, M, weight.K);
  parallel_for(ceil_div(N, kQuantizedCols), [&](std::int64_t panel) {
    const std::int64_t first = panel * kQuantizedCols;
    float tile[kFewRows * kCols];
    for (std::int64_t col = first; col < std::min(N, first + kQuantizedCols); col += kCols) {
      weight.with_load<I>(col, [&]<class Load>(Load) {
        for (std::int64_t i = 0; i < M; i += FewRows<I>::kHeight) {
          with_height<I>(M - i, [&]<int kHeight>() {
            multiply_columns<I, Load, kHeight>(weight, col, rows.data.data() + i * rows.row, rows.row, tile + i * kCols,
                                               kCols);
          });
        }
      });
      finish(0, col, M, std::min(kCols, N - col), tile, kCols);
    }
  });
}

template <Isa I, class S, class Finish>
void multiply_many_rows(std::int64_t M, std::int64_t N, const Weight& weight, const S* a, const Finish& finish,
                        const GemmResult<float>& result) {
  using Tile = GemmTile<I, float>;
  const std::int64_t K = weight.K;
  if constexpr (kPairs<I, S>) {
    if (has_bf16_dot<I>()) {
      const PairedMatrix<I> left{a, K, 1, K};
      const auto pack_b = [&](float* panel, std::int64_t col, std::int64_t, std::int64_t k0, std::int64_t depth) {
        constexpr std::int64_t kBlock = 32;  // pairs
        BFloat16 rows[2 * kBlock * Tile::kCols];
        for (std::int64_t k = 0; k < depth; k += kBlock) {
          const std::int64_t pairs = std::min(kBlock, depth - k), count = std::min(2 * pairs, K - 2 * (k0 + k));
          dequantize<I>(weight, col, 2 * (k0 + k), count, rows);
          std::fill_n(rows + count * Tile::kCols, (2 * pairs - count) * Tile::kCols, BFloat16{});
          for (std::int64_t i = 0; i < pairs; ++i) {
            const BFloat16* low = rows + 2 * i * Tile::kCols;
            interleave<I>(panel + (k + i) * Tile::kCols, low, low + Tile::kCols, Tile::kCols);
          }
        }
      };
      gemm_blocks<I, PairProduct<I>>(M, N, (K + 1) / 2, left, pack_b, finish, result);
      return;
    }
  }
  const StridedMatrix<I, S> left{a, K, 1};
  const auto pack_b = [&](float* panel, std::int64_t col, std::int64_t, std::int64_t k0, std::int64_t depth) {
    dequantize<I>(weight, col, k0, depth, panel);
  };
  gemm_blocks<I>(M, N, K, left, pack_b, finish, result);
}

template <Isa I, class S>
void multiply(const GemmQuantizedArgs& args) {
  const GemmArgs& product = args.product;
  const Problem<S> problem{.a = static_cast<const S*>(product.a),
                           .b = nullptr,
                           .y = static_cast<S*>(product.y),
                           .residual = static_cast<const S*>(product.residual),
                           .pre_activation = nullptr};
  const Weight weight{args.values, args.scales, product.K, args.group, args.bits};
  const auto finish = [&](std::int64_t row0, std::int64_t col0, std::int64_t rows, std::int64_t cols, const float* tile,
                          std::int64_t tile_row) {
    dispatch_activation(product.activation, [&]<Activation A>() {
      epilogue<I, S, A>(product, problem, row0, col0, rows, cols, tile, tile_row);
    });
  };
  if (product.M <= kFewRows) {
    multiply_few_rows<I>(product.M, product.N, weight, problem.a, finish);
    return;
  }
  GemmResult<float> result;
  if constexpr (std::is_same_v<S, float>) result = {.sums = problem.y, .sums_row = product.N};
  multiply_many_rows<I>(product.M, product.N, weight, problem.a, finish, result);
}

// Quantises a group of rows of GemmTile's columns, which lie one after another; the integers come as floats, in place.
template <Isa I>
void quantize_group(float* rows, std::int64_t depth, float most, float* scales) {
  using Tile = GemmTile<I, float>;
  using V = Vec<float, I>;
  for (int v = 0; v < Tile::kVectors; ++v) {
    float* column = rows + v * V::kLanes;
    V largest = V::zero(), poison = V::zero();  // 0 w: NaN where w is not finite
    for (std::int64_t k = 0; k < depth; ++k) {
      const V value = V::load(column + k * Tile::kCols);
      largest = max(largest, abs(value));
      poison = fma(value, V::zero(), poison);
    }
    const V limit = V::set(most), scale = (largest + poison) / limit;
    scale.store(scales + v * V::kLanes);
    for (std::int64_t k = 0; k < depth; ++k) {
      const V q = max(min(round(V::load(column + k * Tile::kCols) / scale), limit), -limit);
      select(V::zero() < scale, q, V::zero()).store(column + k * Tile::kCols);
    }
  }
}

template <Isa I, class S>
void quantize_panel(const QuantizeWeightArgs& args, std::int64_t panel) {
  using Tile = GemmTile<I, float>;
  const std::int64_t row_bytes = kQuantizedCols * args.bits / 8;
  const StridedMatrix<I, S> matrix{static_cast<const S*>(args.b), args.b_col, args.b_row};
  const Scratch<float> rows(static_cast<std::size_t>(args.K * Tile::kCols));
  std::uint8_t* values = args.values + panel * args.K * row_bytes;
  float* scales = args.scales + panel * ceil_div(args.K, args.group) * kQuantizedCols;
  for (std::int64_t first = 0; first < kQuantizedCols; first += Tile::kCols) {
    const std::int64_t col = panel * kQuantizedCols + first;
    const std::int64_t cols = std::clamp<std::int64_t>(args.N - col, 0, Tile::kCols);
    matrix.pack_cols(rows.data(), cols > 0 ? col : 0, cols, 0, args.K);
    for (std::int64_t k = 0; k < args.K; k += args.group) {
      quantize_group<I>(rows.data() + k * Tile::kCols, std::min(args.group, args.K - k), args.bits == 8 ? 127 : 7,
                        scales + k / args.group * kQuantizedCols + first);
    }
    for (std::int64_t k = 0; k < args.K; ++k) {
      for (std::int64_t j = 0; j < Tile::kCols; ++j) {
        const auto q = static_cast<std::uint8_t>(static_cast<int>(rows.data()[k * Tile::kCols + j]));
        std::uint8_t* row = values + k * row_bytes;
        if (args.bits == 8) {
          row[first + j] = q;
        } else if (first + j < kHalf) {
          row[first + j] = q & 15;
        } else {
          row[first + j - kHalf] |= static_cast<std::uint8_t>(q << 4);
        }
      }
    }
  }
}

}  // namespace

template <Isa I>
void quantize_weight(const QuantizeWeightArgs& args) {
  dispatch_narrow_float(args.dtype, [&]<class S>() {
    parallel_for(ceil_div(args.N, kQuantizedCols), [&](std::int64_t panel) { quantize_panel<I, S>(args, panel); });
  });
}

template <Isa I>
void gemm_quantized(const GemmQuantizedArgs& args) {
  dispatch_narrow_float(args.product.dtype, [&]<class S>() { multiply<I, S>(args); });
}

template void quantize_weight<Isa::DRUPE_ISA>(const QuantizeWeightArgs&);
template void gemm_quantized<Isa::DRUPE_ISA>(const GemmQuantizedArgs&);

}  // namespace drupe::cpu
