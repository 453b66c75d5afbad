// gemm: few rows against B as it lies, everything else by gemm_blocks from panels, bfloat16 in pairs where the
// processor multiplies them; and the epilogue. Worklog: bench/worklog/gemm.md.
#include "ops/gemm.h"

#include "core/dispatch.h"
#include "cpu/activation.h"
#include "cpu/gemm_bf16.h"
#include "cpu/gemm_epilogue.h"
#include "cpu/gemm_few_rows.h"
#include "cpu/gemm_rows.h"
#include "cpu/lanes.h"
#include "cpu/simd_transpose.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kFewColumns = 16;  // at most
constexpr std::int64_t kLeastDepth = 16;  // a result costs as much as so many multiplications
constexpr std::int64_t kGrain = 1 << 17;  // multiplications of a task of small matrices

bool has_few_rows(const GemmArgs& args) {
  return args.M <= kFewRows && args.K > 0 && (args.b_row == 1 || args.b_col == 1);
}

// Then they are few rows of the transposed product, which reads a as it lies.
bool has_few_columns(const GemmArgs& args) {
  return args.N <= kFewColumns && args.K > 0 && (args.a_row == 1 || args.a_col == 1) && !args.column_sums;
}

// Whether y goes past the caches. Of the paths, only gemm_rows ends in a fence.
template <Isa I, class S>
bool streams(const GemmArgs& args) {
  const std::int64_t bytes = args.M * args.N * static_cast<std::int64_t>(sizeof(S));
  return !has_few_rows(args) && !has_few_columns(args) && leaves_caches<I>(bytes);
}

template <Isa I, class S>
Problem<S> locate(const GemmArgs& args, std::int64_t index) {
  const std::int64_t y_offset = index * args.M * args.N;
  std::int64_t a = 0, b = 0, residual = 0;
  for (int i = args.batch_shape.size() - 1; i >= 0; --i) {
    const std::int64_t at = index % args.batch_shape[i];
    index /= args.batch_shape[i];
    a += at * args.a_batch[i];
    b += at * args.b_batch[i];
    residual += at * args.residual_batch[i];
  }
  return {.a = static_cast<const S*>(args.a) + a,
          .b = static_cast<const S*>(args.b) + b,
          .y = static_cast<S*>(args.y) + y_offset,
          .residual = args.residual ? static_cast<const S*>(args.residual) + residual : nullptr,
          .pre_activation = args.pre_activation ? static_cast<S*>(args.pre_activation) + y_offset : nullptr,
          .saved = args.saved ? static_cast<const S*>(args.saved) + y_offset : nullptr,
          .stream = streams<I, S>(args)};
}

// Calls f(product, K, a, transposed b): how this processor multiplies S from panels, and the operands for it; K counts
// their elements.
template <Isa I, class S, class F>
auto with_operands(const GemmArgs& args, const S* a, const S* b, const F& f) {
  return with_product<I, S>([&]<class P>(P product) {
    if constexpr (kMultipliesPairs<P>) {
      return f(product, (args.K + 1) / 2, PairedMatrix<I>{a, args.a_row, args.a_col, args.K},
               PairedMatrix<I>{b, args.b_col, args.b_row, args.K});
    } else {
      return f(product, args.K, StridedMatrix<I, S>{a, args.a_row, args.a_col},
               StridedMatrix<I, S>{b, args.b_col, args.b_row});
    }
  });
}

template <Isa I, class S>
void multiply(const GemmArgs& args, const Problem<S>& problem) {
  using T = Accumulator<S>;
  T* partial = nullptr;
  if constexpr (std::is_same_v<S, T>) partial = problem.y;
  const bool plain = args.alpha == 1 && !args.bias && !problem.residual && !problem.pre_activation && !problem.saved &&
                     args.activation == Activation::none && partial;
  const auto finish = [&](std::int64_t row0, std::int64_t col0, std::int64_t rows, std::int64_t cols, const T* tile,
                          std::int64_t tile_row) {
    if (plain) return;
    if (problem.saved) {
      auto* sums = static_cast<T*>(args.column_sums);
      if (sums) sums += row0 / GemmTile<I, T>::kRows * args.N + col0;
      return differentiate<I>(args, problem, row0, col0, rows, cols, tile, tile_row, sums);
    }
    dispatch_activation(args.activation, [&]<Activation A>() {
      epilogue<I, S, A>(args, problem, row0, col0, rows, cols, tile, tile_row);
    });
  };
  if (has_few_rows(args)) {
    gemm_few_rows<I>(args.M, args.N, args.K, problem.a, args.a_row, args.a_col, problem.b, args.b_row, args.b_col,
                     finish, partial, args.N);
    return;
  }
  if (has_few_columns(args)) {
    const auto turn = [&](std::int64_t, std::int64_t row0, std::int64_t, std::int64_t rows, const T* tile,
                          std::int64_t tile_row) {
      constexpr std::int64_t kPiece = 64;
      T piece[kPiece * kFewColumns];
      for (std::int64_t begin = 0; begin < rows; begin += kPiece) {
        const std::int64_t count = std::min(kPiece, rows - begin);
        T* to = plain ? partial + (row0 + begin) * args.N : piece;
        transpose_small<I>(tile + begin, tile_row, to, args.N, args.N, count);
        finish(row0 + begin, 0, count, args.N, to, args.N);
      }
    };
    gemm_few_rows<I>(args.N, args.M, args.K, problem.b, args.b_col, args.b_row, problem.a, args.a_col, args.a_row, turn,
                     static_cast<T*>(nullptr), 0);
    return;
  }
  with_operands<I>(args, problem.a, problem.b, [&]<class P>(P, std::int64_t K, const auto& a, const auto& bt) {
    const bool rows_added = problem.residual && args.residual_col == 1;
    const GemmResult<T> result{.sums = partial,
                               .sums_row = args.N,
                               .in_place = plain,
                               .written = problem.stream ? Beside() : Beside::of(problem.y, args.N),
                               .added = problem.saved ? Beside::of(problem.saved, args.N)
                                        : rows_added  ? Beside::of(problem.residual, args.residual_row)
                                                      : Beside()};
    gemm_blocks<I, P>(
        args.M, args.N, K, a, [&](auto... panel) { bt.pack_cols(panel...); }, finish, result,
        static_cast<const T*>(args.b_panels));
  });
}

}  // namespace

template <Isa I>
void gemm(const GemmArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    std::int64_t batch = 1;
    for (int i = 0; i < args.batch_shape.size(); ++i) batch *= args.batch_shape[i];
    // Enough matrices: one per task, or several small ones. Few: the tiles of each in parallel. The choice does not
    // change the bits: an element's sum depends on K alone.
    const std::int64_t grain =
        std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, args.M * args.N * std::max(kLeastDepth, args.K)));
    if (batch >= num_threads()) {
      parallel_ranges(batch, grain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t index = begin; index < end; ++index) multiply<I>(args, locate<I, S>(args, index));
      });
    } else {
      for (std::int64_t index = 0; index < batch; ++index) multiply<I>(args, locate<I, S>(args, index));
    }
  });
}

template <Isa I>
std::int64_t pack_gemm(const GemmArgs& args, void* panels) {
  std::int64_t bytes = 0;
  dispatch_float(args.dtype, [&]<class S>() {
    using T = Accumulator<S>;
    const S* none = nullptr;
    with_operands<I>(args, none, static_cast<const S*>(args.b), [&](auto, std::int64_t K, const auto&, const auto& bt) {
      const ColumnPanels<I, T> layout(args.N, K);
      bytes = layout.size() * static_cast<std::int64_t>(sizeof(T));
      const auto pack = [&](auto... panel) { bt.pack_cols(panel...); };
      if (panels) layout.fill(static_cast<T*>(panels), pack);
    });
  });
  return bytes;
}

template <Isa I>
std::int64_t gemm_parts(const GemmArgs& args) {
  std::int64_t parts = 1;
  dispatch_float(args.dtype, [&]<class S>() {
    if (!has_few_rows(args)) parts = ceil_div(args.M, GemmTile<I, Accumulator<S>>::kRows);
  });
  return parts;
}

template void gemm<Isa::DRUPE_ISA>(const GemmArgs&);
template std::int64_t gemm_parts<Isa::DRUPE_ISA>(const GemmArgs&);
template std::int64_t pack_gemm<Isa::DRUPE_ISA>(const GemmArgs&, void*);

}  // namespace drupe::cpu
