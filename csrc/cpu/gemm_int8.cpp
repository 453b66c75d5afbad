// gemm_int8, in two ways. With vpdpbusd and more than a few rows, gemm_core's panels hold four neighbours along k in
// the 32 bits of a float, and the sums are int32 in such bits. Else a task owns a block of y, and a few rows of each
// operand, both of which lie along K, are multiplied as they are, a register of bytes at a time, with sums across the
// registers at the end: nothing is packed. Bytes then: b M / kTaskRows times, a N / kTaskCols times.
#include "ops/gemm_int8.h"

#include <bit>
#include <cstring>

#include "core/dispatch.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/activation.h"
#include "cpu/gemm_rows.h"
#include "cpu/lanes.h"
#include "cpu/simd_int8.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kTaskRows = 48, kTaskCols = 64;

// y = activation(scales sums + bias) on rows x cols of y from (row0, col0) on. sum(i, j) gives element (i, j) as int32.
template <Isa I, class S, Activation A, class Sum>
void finish(const GemmInt8Args& args, std::int64_t row0, std::int64_t col0, std::int64_t rows, std::int64_t cols,
            const Sum& sum) {
  using V = Vec<float, I>;
  for (std::int64_t i = 0; i < rows; ++i) {
    const V scale = V::set(args.scale_a[row0 + i]);
    S* y = static_cast<S*>(args.y) + (row0 + i) * args.N + col0;
    for_vectors<I, float>(cols, [&](std::int64_t j, auto lanes) {
      float sums[V::kLanes] = {};
      const std::int64_t count = std::is_same_v<decltype(lanes), AllLanes> ? V::kLanes : cols - j;
      for (std::int64_t k = 0; k < count; ++k) sums[k] = static_cast<float>(sum(i, j + k));
      V x = V::load(sums) * scale * load<V>(args.scale_b + col0 + j, lanes);
      if (args.bias) x = x + load<V>(args.bias + col0 + j, lanes);
      store(activate<A>(x), y + j, lanes);
    });
  }
}

template <Isa I, class Sum>
void finish(const GemmInt8Args& args, std::int64_t row0, std::int64_t col0, std::int64_t rows, std::int64_t cols,
            const Sum& sum) {
  dispatch_activation(args.activation, [&]<Activation A>() {
    dispatch_narrow_float(args.dtype, [&]<class S>() { finish<I, S, A>(args, row0, col0, rows, cols, sum); });
  });
}

// What the sums with vpdpbusd have too much, for each row of a, modulo 2^32 as the instruction adds: 128 times its sum.
template <Isa I>
void find_excesses(const GemmInt8Args& args, std::uint32_t* excess) {
  constexpr std::int64_t kGrainRows = 64;
  parallel_ranges(args.M, kGrainRows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t m = begin; m < end; ++m) {
      excess[m] = 128u * static_cast<std::uint32_t>(sum_bytes<I>(args.a + m * args.K, args.K));
    }
  });
}

template <Isa I>
void multiply_in_panels(const GemmInt8Args& args, const std::uint32_t* excess) {
  using Tile = GemmTile<I, float>;
  const std::int64_t K = args.K;
  // Fours of bytes of a line from k0 on, zeros past its end.
  const auto along = [K](float* to, const std::int8_t* line, std::int64_t k0, std::int64_t n) {
    const std::int64_t bytes = std::min(4 * n, K - 4 * k0);
    std::memset(to + bytes / 4, 0, static_cast<std::size_t>(n - bytes / 4) * sizeof(float));
    std::memcpy(to, line + 4 * k0, static_cast<std::size_t>(bytes));
  };
  const auto pack_rows = [&](float* panel, std::int64_t row0, std::int64_t rows, std::int64_t k0, std::int64_t depth) {
    for (std::int64_t i = 0; i < rows; ++i) along(panel + i * Tile::kPanelStride, args.a + (row0 + i) * K, k0, depth);
  };
  gemm_blocks<I, ByteProduct<I>, float>(
      args.M, args.N, (K + 3) / 4, PackedRows<float, decltype(pack_rows)>{pack_rows},
      [&](float* panel, std::int64_t col0, std::int64_t cols, std::int64_t k0, std::int64_t depth) {
        if (cols < Tile::kCols) std::memset(panel, 0, static_cast<std::size_t>(depth * Tile::kCols) * sizeof(float));
        transpose_lines<I>(panel, Tile::kCols, cols, depth,
                           [&](float* to, std::int64_t j, std::int64_t k, std::int64_t n) {
                             along(to, args.b + (col0 + j) * K, k0 + k, n);
                             add_128(to, n);
                           });
      },
      [&](std::int64_t row0, std::int64_t col0, std::int64_t rows, std::int64_t cols, const float* tile,
          std::int64_t tile_row) {
        finish<I>(args, row0, col0, rows, cols, [&](std::int64_t i, std::int64_t j) {
          return static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(tile[i * tile_row + j]) - excess[row0 + i]);
        });
      });
}

// A task's block of y. `excess` is given where vpdpbusd is used.
template <Isa I, int kRows>
void multiply_rows(const GemmInt8Args& args, const std::uint32_t* excess, std::int64_t row0, std::int64_t col0) {
  constexpr int kCols = Bytes<I>::kCols;
  const std::int64_t rows = std::min(kTaskRows, args.M - row0), cols = std::min(kTaskCols, args.N - col0);
  std::int32_t block[kTaskRows][kTaskCols];
  for (std::int64_t n = 0; n < cols; n += kCols) {
    for (std::int64_t m = 0; m < rows; m += kRows) {
      const std::int64_t row = row0 + m, height = std::min<std::int64_t>(kRows, rows - m);
      const std::int64_t col = col0 + n, width = std::min<std::int64_t>(kCols, cols - n);
      const ByteRows<I, kRows> bytes(args.a + row * args.K, height, args.b + col * args.K, width, args.K);
      std::int32_t sums[kRows][kCols];
      if (excess) {
#if defined(__AVX512F__)
        dot_byte_rows_vnni<I>(bytes, args.K, sums);
#endif
      } else {
        dot_byte_rows<I>(bytes, args.K, sums);
      }
      for (std::int64_t i = 0; i < height; ++i) {
        const std::uint32_t over = excess ? excess[row + i] : 0;
        for (std::int64_t j = 0; j < width; ++j) {
          block[m + i][n + j] = static_cast<std::int32_t>(static_cast<std::uint32_t>(sums[i][j]) - over);
        }
      }
    }
  }
  finish<I>(args, row0, col0, rows, cols, [&](std::int64_t i, std::int64_t j) { return block[i][j]; });
}

}  // namespace

template <Isa I>
void gemm_int8(const GemmInt8Args& args) {
  constexpr std::int64_t kFewRows = 72;  // fewer do not repay the packing of b
  const bool byte_dots = has_byte_dots<I>();
  const Scratch<std::uint32_t> excess(byte_dots ? static_cast<std::size_t>(args.M) : 0);
  if constexpr (I == Isa::avx512) {
    if (byte_dots) find_excesses<I>(args, excess.data());
    if (byte_dots && args.M > kFewRows && args.K > 0) {
      multiply_in_panels<I>(args, excess.data());
      return;
    }
  }
  const std::int64_t down = (args.M + kTaskRows - 1) / kTaskRows, across = (args.N + kTaskCols - 1) / kTaskCols;
  parallel_for(down * across, [&](std::int64_t task) {
    const std::uint32_t* over = byte_dots ? excess.data() : nullptr;
    const std::int64_t row0 = task / across * kTaskRows, col0 = task % across * kTaskCols;
    if (args.M == 1) {
      multiply_rows<I, 1>(args, over, row0, col0);
    } else {
      multiply_rows<I, Bytes<I>::kRows>(args, over, row0, col0);
    }
  });
}

template void gemm_int8<Isa::DRUPE_ISA>(const GemmInt8Args&);

}  // namespace drupe::cpu
