// gemm_int8: a task owns a block of y. Both operands lie along K, so that a few rows of each are multiplied as they
// are, a register of bytes at a time, with sums across the registers at the end: nothing is packed. A task's rows of a
// come from L2 for each few rows of b. Bytes: b M / kTaskRows times, a N / kTaskCols times.
#include "ops/gemm_int8.h"

#include "core/dispatch.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/activation.h"
#include "cpu/lanes.h"
#include "cpu/simd_int8.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kTaskRows = 48, kTaskCols = 64;

struct Block {
  std::int64_t row0, col0, rows, cols;
  float sums[kTaskRows * kTaskCols];
};

// The block's sums, rounded to float. `excess`, where vpdpbusd is used, is what each row's have too much.
template <Isa I>
void multiply(const GemmInt8Args& args, const std::uint32_t* excess, Block& block) {
  constexpr int kRows = Bytes<I>::kRows, kCols = Bytes<I>::kCols;
  for (std::int64_t n = 0; n < block.cols; n += kCols) {
    for (std::int64_t m = 0; m < block.rows; m += kRows) {
      const std::int64_t row = block.row0 + m, rows = std::min<std::int64_t>(kRows, block.rows - m);
      const std::int64_t col = block.col0 + n, cols = std::min<std::int64_t>(kCols, block.cols - n);
      const ByteRows<I> bytes(args.a + row * args.K, rows, args.b + col * args.K, cols, args.K);
      std::int32_t sums[kRows][kCols];
      if (excess) {
#if defined(__AVX512F__)
        dot_byte_rows_vnni<I>(bytes, args.K, sums);
#endif
      } else {
        dot_byte_rows<I>(bytes, args.K, sums);
      }
      for (std::int64_t i = 0; i < rows; ++i) {
        const std::uint32_t over = excess ? excess[row + i] : 0;  // modulo 2^32, as the instruction adds
        for (std::int64_t j = 0; j < cols; ++j) {
          const auto sum = static_cast<std::int32_t>(static_cast<std::uint32_t>(sums[i][j]) - over);
          block.sums[(m + i) * kTaskCols + n + j] = static_cast<float>(sum);
        }
      }
    }
  }
}

template <Isa I, class S, Activation A>
void finish(const GemmInt8Args& args, const Block& block) {
  using V = Vec<float, I>;
  for (std::int64_t i = 0; i < block.rows; ++i) {
    const V scale = V::set(args.scale_a[block.row0 + i]);
    S* y = static_cast<S*>(args.y) + (block.row0 + i) * args.N + block.col0;
    for_vectors<I, float>(block.cols, [&](std::int64_t j, auto lanes) {
      V x = load<V>(block.sums + i * kTaskCols + j, lanes) * scale * load<V>(args.scale_b + block.col0 + j, lanes);
      if (args.bias) x = x + load<V>(args.bias + block.col0 + j, lanes);
      store(activate<A>(x), y + j, lanes);
    });
  }
}

template <Isa I>
void finish(const GemmInt8Args& args, const Block& block) {
  dispatch_activation(args.activation, [&]<Activation A>() {
    switch (args.dtype) {
      case Dtype::f32:
        return finish<I, float, A>(args, block);
      case Dtype::f16:
        return finish<I, Float16, A>(args, block);
      case Dtype::bf16:
        return finish<I, BFloat16, A>(args, block);
      default:
        unexpected_dtype(args.dtype);
    }
  });
}

}  // namespace

template <Isa I>
void gemm_int8(const GemmInt8Args& args) {
  constexpr std::int64_t kGrainRows = 64;
  const bool byte_dots = has_byte_dots<I>();
  const Scratch<std::uint32_t> excess(byte_dots ? static_cast<std::size_t>(args.M) : 0);
  if (byte_dots) {
    parallel_ranges(args.M, kGrainRows, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t m = begin; m < end; ++m) {
        std::int32_t sum = 0;
        for (std::int64_t k = 0; k < args.K; ++k) sum += args.a[m * args.K + k];
        excess[static_cast<std::size_t>(m)] = 128u * static_cast<std::uint32_t>(sum);
      }
    });
  }
  const std::int64_t down = (args.M + kTaskRows - 1) / kTaskRows, across = (args.N + kTaskCols - 1) / kTaskCols;
  parallel_for(down * across, [&](std::int64_t task) {
    Block block;
    block.row0 = task / across * kTaskRows;
    block.col0 = task % across * kTaskCols;
    block.rows = std::min(kTaskRows, args.M - block.row0);
    block.cols = std::min(kTaskCols, args.N - block.col0);
    multiply<I>(args, byte_dots ? excess.data() : nullptr, block);
    finish<I>(args, block);
  });
}

template void gemm_int8<Isa::DRUPE_ISA>(const GemmInt8Args&);

}  // namespace drupe::cpu
