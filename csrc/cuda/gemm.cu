// gemm on any GPU from sm_80 on. A block of threads owns 128 x 128 or 64 x 64 of y for one part of K. Its operands come
// through shared memory by cp.async, in 4 stages: 16-bit formats by 32 of k, each as it lies in memory, for four warps
// with mma.m16n8k16; float32 by 8 of k for FMA and float64 (64 x 64 only) for mma.m8n8k4. Sums go back through shared
// memory, so that the epilogue reads and writes rows in pieces of 16 bytes. Where y has too few blocks for the device,
// K is parted: sums wait in a scratch array, and gemm_reduce_kernel adds them in the order of k. Bytes: a read N /
// block times, b M / block times (mostly from L2), y written once. Worklog: bench/worklog/gemm.md.
#include "ops/gemm.h"

#include <algorithm>
#include <platform/launch.cuh>
#include <type_traits>

#include "core/cuda.h"
#include "core/dispatch.h"
#include "cuda/gemm/fma.cuh"
#include "cuda/gemm/tensor_core.cuh"
#include "cuda/gemm_tile.h"
#include "cuda/tile/map.cuh"

namespace drupe::cuda {
namespace {

template <class T, int kBlock>
struct CoreOf {
  using Type = GemmTensorCore<T, kBlock>;
};
template <int kBlock>
struct CoreOf<float, kBlock> {
  using Type = GemmFma<kBlock>;
};
template <int kBlock>
struct CoreOf<double, kBlock> {
  using Type = GemmDouble<kBlock>;
};
template <class T, int kBlock>
using Core = typename CoreOf<T, kBlock>::Type;

template <class C>
struct GemmStorage {
  union {
    typename C::Stage stage[C::kStages];
    typename C::Slab slab[C::kThreads / 32];
  };
  GemmPlace place;  // here rather than in registers
};

template <class C, class T>
__device__ __forceinline__ void sum_products(C& core, GemmStorage<C>& storage, const GemmProblem<T>& problem) {
  const GemmPlace& at = storage.place;
  typename C::Loader a(problem.a, problem.a.at(at.offset.at[kBatchA], at.m0, at.k_begin), problem.M - at.m0);
  typename C::Loader b(problem.b, problem.b.at(at.offset.at[kBatchB], at.n0, at.k_begin), problem.N - at.n0);
  const std::int64_t depth = at.k_end - at.k_begin;
  int steps = static_cast<int>(tiles_across(depth, C::kDepth)), loads = steps, stage = 0;
  const int last_depth = static_cast<int>(depth - static_cast<std::int64_t>(steps - 1) * C::kDepth);
  // The next step of k into its stage; past the last, an empty group keeps the count.
  const auto load = [&] {
    if (loads > 0) {
      a.load(storage.stage[stage].a, loads == 1 ? last_depth : C::kDepth);
      b.load(storage.stage[stage].b, loads == 1 ? last_depth : C::kDepth);
      --loads;
    }
    cp_async_commit_group();
    stage = stage == C::kStages - 1 ? 0 : stage + 1;
  };
#pragma unroll 1
  for (int i = 0; i < C::kStages - 1; ++i) load();
#pragma unroll 1
  for (; steps > 0; --steps) {
    cp_async_wait_group<C::kStages - 2>();
    __syncthreads();  // the oldest stage has come, and all have left the one before it
    load();
    core.multiply(storage.stage[stage], problem.a.k_major, problem.b.k_major);
  }
  cp_async_wait_group<0>();
  __syncthreads();
}

template <class T, int kBlock>
__global__ __launch_bounds__(Core<T, kBlock>::kThreads,
                             Core<T, kBlock>::kBlocksPerMultiprocessor) void gemm_kernel(GemmProblem<T> problem) {
  using C = Core<T, kBlock>;
  auto& storage = shared_storage<GemmStorage<C>>();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x == 0) storage.place = gemm_place(problem, problem.first + blockIdx.x, kBlock);
  __syncthreads();
  C core;
  sum_products(core, storage, problem);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    core.write_slab(storage.slab[warp], half);
    flush_slab(problem, storage.place, storage.slab[warp], warp / 2 * C::kWarpM + half * C::kWarpM / 2,
               warp % 2 * C::kWarpN);
  }
}

constexpr int kReduceThreads = 256;

template <class T>
__global__ __launch_bounds__(kReduceThreads) void gemm_reduce_kernel(GemmProblem<T> problem) {
  using A = Accumulator<T>;
  constexpr int kRun = kGemmRun<T>;
  const std::int64_t runs = tiles_across(problem.N, kRun), rows = problem.batch.size * problem.M;
  for (std::int64_t i = global_thread(); i < rows * runs; i += global_threads()) {
    const std::int64_t any_row = i / runs, col = (i - any_row * runs) * kRun;
    const std::int64_t batch = any_row / problem.M, row = any_row - batch * problem.M;
    A run[kRun] = {};
#pragma unroll 4
    for (std::int64_t split = 0; split < problem.splits; ++split) {
      A part[kRun];
      load_sums(part, partial_at(problem, split, batch, row, col), run_count(problem, col), problem.y_vectors);
#pragma unroll
      for (int e = 0; e < kRun; ++e) run[e] += part[e];
    }
    const Offsets<kBatchOperands> offset = locate(problem.batch, batch);
    finish_run(problem, batch, offset.at[kBatchResidual], row, col, run);
  }
}

// Whether vectors of T can be read along the contiguous one of two dimensions.
template <class T>
bool takes_vectors(const void* data, std::int64_t contiguous_stride, std::int64_t contiguous_extent,
                   std::int64_t other_stride, std::int64_t other_extent, const Dims& shape, const Dims& strides) {
  constexpr std::int64_t kPack = kPackSize<T>;
  if (contiguous_stride != 1 || contiguous_extent % kPack != 0) return false;
  if (other_extent > 1 && other_stride % kPack != 0) return false;
  for (int d = 0; d < shape.size(); ++d) {
    if (shape[d] > 1 && strides[d] % kPack != 0) return false;
  }
  return is_pack_aligned(static_cast<const T*>(data));
}

template <class T, int kBlock>
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
  if (Core<T, kBlock>::kTakesKVectors && vectors(k_stride, args.K, outer_stride, outer)) {
    result.vectors = true;
  } else if (vectors(outer_stride, outer, k_stride, args.K)) {
    result.vectors = true;
    result.k_major = false;
  } else {
    result.k_major = outer == 1 || (args.K > 1 && std::abs(k_stride) < std::abs(outer_stride));
  }
  return result;
}

template <class T, int kBlock>
GemmProblem<T> problem_of(const GemmArgs& args) {
  const Loops batch{.shape = args.batch_shape, .strides = {args.a_batch, args.b_batch, args.residual_batch}};
  GemmProblem<T> problem{.M = args.M,
                         .N = args.N,
                         .K = args.K,
                         .a = operand<T, kBlock>(args, args.a, args.M, args.a_row, args.a_col, args.a_batch),
                         .b = operand<T, kBlock>(args, args.b, args.N, args.b_col, args.b_row, args.b_batch),
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
                         .residual_vectors = false,
                         .batch = Strided<kBatchOperands>(batch),
                         .splits = 1,
                         .part = std::max<std::int64_t>(args.K, 1),
                         .partial = nullptr,
                         .tiles_m = tiles_across(args.M, kBlock),
                         .tiles_n = tiles_across(args.N, kBlock),
                         .first = 0};
  problem.y_vectors = args.N % kGemmRun<T> == 0 && is_pack_aligned(problem.y, problem.pre_activation);
  problem.bias_vectors = problem.y_vectors && is_pack_aligned(problem.bias);
  problem.residual_vectors =
      problem.y_vectors && takes_vectors<T>(args.residual, args.residual_col, args.N, args.residual_row, args.M,
                                            args.batch_shape, args.residual_batch);
  return problem;
}

template <class T, int kBlock>
void launch_gemm(const GemmArgs& args, std::int64_t splits, Stream stream) {
  using C = Core<T, kBlock>;
  GemmProblem<T> problem = problem_of<T, kBlock>(args);
  if (splits > 1) {
    problem.part = tiles_across(tiles_across(args.K, splits), C::kDepth) * C::kDepth;
    problem.splits = tiles_across(args.K, problem.part);
  }
  const std::int64_t matrices = problem.splits * problem.batch.size, rows = problem.batch.size * args.M;
  std::shared_ptr<void> scratch;
  if (problem.splits > 1) {
    const auto sums = static_cast<std::size_t>(matrices * args.M * args.N);
    scratch = allocate(sums * sizeof(Accumulator<T>), {DeviceType::cuda, stream.device});
    problem.partial = static_cast<Accumulator<T>*>(scratch.get());
  }
  constexpr std::int64_t kMostBlocks = 0x7fffffff;  // of a grid
  const std::int64_t blocks = problem.tiles_m * problem.tiles_n * matrices;
  for (; problem.first < blocks; problem.first += kMostBlocks) {
    launch<gemm_kernel<T, kBlock>>({.grid = {static_cast<unsigned>(std::min(blocks - problem.first, kMostBlocks))},
                                    .block = {C::kThreads},
                                    .shared_bytes = sizeof(GemmStorage<C>)},
                                   stream, problem);
  }
  if (problem.splits > 1) {
    launch<gemm_reduce_kernel<T>>(
        {.grid = {blocks_for(rows * tiles_across(args.N, kGemmRun<T>), 1, kReduceThreads)}, .block = {kReduceThreads}},
        stream, problem);
  }
}

static_assert(choose_tile(8192, 8192, 8192, 1, 132).block == kLargeBlock);
static_assert(choose_tile(8192, 8192, 8192, 1, 132).splits == 1);
static_assert(choose_tile(512, 512, 512, 1, 132).block == kSmallBlock);
static_assert(choose_tile(1, 4096, 4096, 1, 132).splits == 4);
static_assert(choose_tile(64, 64, 255, 1, 132).splits == 1);
static_assert(choose_tile(64, 64, 64, 10000, 132).splits == 1);

}  // namespace

void gemm(const GemmArgs& args, Stream stream) {
  std::int64_t batch = 1;
  for (int d = 0; d < args.batch_shape.size(); ++d) batch *= args.batch_shape[d];
  if (args.M == 0 || args.N == 0 || batch == 0) return;
  dispatch_float(args.dtype, [&]<class T>() {
    const bool small_only = std::is_same_v<T, double>;
    const GemmTile tile = choose_tile(args.M, args.N, args.K, batch, multiprocessors(stream.device),
                                      small_only ? kSmallBlock : kLargeBlock);
    if constexpr (!small_only) {
      if (tile.block == kLargeBlock) return launch_gemm<T, kLargeBlock>(args, tile.splits, stream);
    }
    launch_gemm<T, kSmallBlock>(args, tile.splits, stream);
  });
}

}  // namespace drupe::cuda
