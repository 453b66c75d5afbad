// gemm on any GPU from sm_80 on. A block of threads owns 128 x 128 or 64 x 64 of y for one part of K. Its operands come
// through shared memory by cp.async, in 4 stages: 16-bit formats by 32 of k, each as it lies in memory, for four warps
// with mma.m16n8k16; float32 by 8 of k for FMA, or by 16 for mma.m16n8k8 in tf32, and float64 (64 x 64 only) for
// mma.m8n8k4. Sums go back through shared memory, so that the epilogue reads and writes rows in pieces of 16 bytes. The
// last wave of blocks is cut along K where that fills the device better (gemm_tile.h): its sums wait in a scratch
// array, and gemm_reduce_kernel adds them in the order of k. Bytes: a read N / block times, b M / block times (mostly
// from L2), y written once. Worklog: bench/worklog/gemm.md.
#include "ops/gemm.h"

#include <cstdlib>
#include <type_traits>

#include "core/dispatch.h"
#include "cuda/gemm/few_rows.cuh"
#include "cuda/gemm/fma.cuh"
#include "cuda/gemm/kernel.cuh"
#include "cuda/gemm/problem.cuh"
#include "cuda/gemm/tensor_core.cuh"

namespace drupe::cuda {
namespace {

// The exact core of T, or with kTf32 the rounding one of float.
template <class T, bool kTf32, int kBlock>
struct CoreOf {
  using Type = GemmTensorCore<T, kBlock>;
};
template <int kBlock>
struct CoreOf<float, false, kBlock> {
  using Type = GemmFma<kBlock>;
};
template <int kBlock>
struct CoreOf<double, false, kBlock> {
  using Type = GemmDouble<kBlock>;
};

template <class C, class T>
GemmOperand<T> operand(const GemmArgs& args, const void* data, std::int64_t outer, std::int64_t outer_stride,
                       std::int64_t k_stride, const Dims& batch_strides) {
  const auto vectors = [&](std::int64_t stride, std::int64_t extent, std::int64_t other_stride, std::int64_t other) {
    return takes_vectors<T>(data, stride, extent, other_stride, other, args.batch_shape, batch_strides);
  };
  GemmOperand<T> result{.data = static_cast<const T*>(data),
                        .outer_stride = outer_stride,
                        .k_stride = k_stride,
                        .k_major = true,
                        .vectors = false};
  if (C::kTakesKVectors && vectors(k_stride, args.K, outer_stride, outer)) {
    result.vectors = true;
  } else if (vectors(outer_stride, outer, k_stride, args.K)) {
    result.vectors = true;
    result.k_major = false;
  } else {
    result.k_major = outer == 1 || (args.K > 1 && std::abs(k_stride) < std::abs(outer_stride));
  }
  return result;
}

template <class C, class T>
GemmProblem<T> problem_of(const GemmArgs& args, const GemmSchedule& schedule) {
  const Loops batch{.shape = args.batch_shape, .strides = {args.a_batch, args.b_batch, args.residual_batch}};
  GemmProblem<T> problem{.grid = GemmGrid(args.M, args.N, args.K, batch, schedule, C::kDepth),
                         .a = operand<C, T>(args, args.a, args.M, args.a_row, args.a_col, args.a_batch),
                         .b = operand<C, T>(args, args.b, args.N, args.b_col, args.b_row, args.b_batch),
                         .partial = nullptr,
                         .y = static_cast<T*>(args.y),
                         .pre_activation = static_cast<T*>(args.pre_activation),
                         .bias = static_cast<const T*>(args.bias),
                         .residual = static_cast<const T*>(args.residual),
                         .residual_row = args.residual_row,
                         .residual_col = args.residual_col,
                         .alpha = static_cast<Accumulator<T>>(args.alpha),
                         .activation = args.activation,
                         .y_vectors = false,
                         .bias_vectors = false,
                         .residual_vectors = false};
  problem.y_vectors = args.N % kPackSize<T> == 0 && is_pack_aligned(problem.y, problem.pre_activation);
  problem.bias_vectors = problem.y_vectors && is_pack_aligned(problem.bias);
  problem.residual_vectors =
      problem.y_vectors && takes_vectors<T>(args.residual, args.residual_col, args.N, args.residual_row, args.M,
                                            args.batch_shape, args.residual_batch);
  return problem;
}

template <class Core, int kGroups, class T>
void launch_few_rows(const GemmProblem<T>& problem, Stream stream) {
  launch<gemm_few_rows_kernel<Core, T, kGroups>>({.grid = {static_cast<unsigned>(problem.grid.blocks())},
                                                  .block = {kFewRowsThreads},
                                                  .shared_bytes = sizeof(FewRowsStorage<kGroups>)},
                                                 stream, problem);
}

struct FewRowsOperands {
  static constexpr bool kTakesKVectors = true;
  static constexpr int kDepth = 1;
};

// False where there are many rows, or operands that cannot be read in vectors along k.
template <class T>
bool try_few_rows(const GemmArgs& args, std::int64_t batch, Stream stream) {
  const int cols = few_rows_columns(args.M, args.N, args.K, batch, multiprocessors(stream.device));
  if (cols == 0) return false;
  const GemmSchedule schedule{.block = cols, .whole = tiles_across(args.N, cols) * batch, .splits = 1};
  const auto problem = problem_of<FewRowsOperands, T>(args, schedule);
  if (!problem.a.vectors || !problem.a.k_major || !problem.b.vectors || !problem.b.k_major) return false;
  if constexpr (std::is_same_v<T, float>) {
    if (args.M > 4) {
      launch_few_rows<FewRowsFma<16, 2>, 2>(problem, stream);
    } else if (cols == 16) {
      launch_few_rows<FewRowsFma<4, 2>, 2>(problem, stream);
    } else {
      launch_few_rows<FewRowsFma<4, 1>, 1>(problem, stream);
    }
  } else if (cols == 16) {
    launch_few_rows<FewRowsTensorCore<T, 2>, 2>(problem, stream);
  } else {
    launch_few_rows<FewRowsTensorCore<T, 1>, 1>(problem, stream);
  }
  return true;
}

template <class T, bool kTf32 = false>
void launch_blocks(const GemmArgs& args, std::int64_t batch, Stream stream) {
  constexpr int kLargest = std::is_same_v<T, double> ? kSmallBlock : kLargeBlock;
  using Large = typename CoreOf<T, kTf32, kLargest>::Type;
  using Small = typename CoreOf<T, kTf32, kSmallBlock>::Type;
  const GemmSchedule schedule = schedule_gemm(args.M, args.N, args.K, batch, multiprocessors(stream.device), kLargest);
  if (schedule.block == kLargest) {
    launch_gemm<Large>(problem_of<Large, T>(args, schedule), stream);
  } else {
    launch_gemm<Small>(problem_of<Small, T>(args, schedule), stream);
  }
}

}  // namespace

void gemm(const GemmArgs& args, Stream stream) {
  std::int64_t batch = 1;
  for (int d = 0; d < args.batch_shape.size(); ++d) batch *= args.batch_shape[d];
  if (args.M == 0 || args.N == 0 || batch == 0) return;
  dispatch_float(args.dtype, [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>) {
      if (try_few_rows<T>(args, batch, stream)) return;
    }
    if constexpr (std::is_same_v<T, float>) {
      if (args.tf32) return launch_blocks<T, true>(args, batch, stream);
    }
    launch_blocks<T>(args, batch, stream);
  });
}

}  // namespace drupe::cuda
