// Group normalisation by the sweeps of channel_norm.h, and between them kernels that add up their partial results in
// double: over a sample's chunks, 32 channels a block, then over a group's channels, a block each; for the parameters'
// gradients over samples, a thread a channel.
// Bytes: forward reads x twice and writes y; backward reads x and dy twice and writes dx.
#include "ops/group_norm.h"

#include "core/cuda.h"
#include "core/dispatch.h"
#include "core/quotient.h"
#include "cuda/channel_norm.h"
#include "cuda/tile/channel_fold.cuh"
#include "cuda/tile/grid.cuh"
#include "cuda/tile/map.cuh"
#include "cuda/tile/reduce.cuh"

namespace drupe::cuda {
namespace {

constexpr int kGroupThreads = 128;

using GroupStorage = ReduceStorage<double, kGroupThreads>;

__device__ __forceinline__ double block_sum(double value, GroupStorage& storage) {
  const double sum = block_reduce<kGroupThreads>(value, Sum{}, storage);
  __syncthreads();
  return sum;
}

// One sample's group of channels.
struct Group {
  std::int64_t sample, first, width;
};

__device__ __forceinline__ Group group_of(const GroupNormArgs& args, std::int64_t number) {
  const std::int64_t width = quotient(args.C, args.groups), sample = quotient(number, args.groups);
  return {.sample = sample, .first = (number - sample * args.groups) * width, .width = width};
}

// A sample's sums or moments over its chunks; folded is (N, 2, C).
template <bool kMoments>
__global__ __launch_bounds__(kFoldThreads) void group_norm_fold_kernel(ChannelTiling tiling, std::int64_t columns,
                                                                       const double* partial, double* folded) {
  const std::int64_t sample = quotient(block_number(), columns);
  if (sample >= tiling.samples) return;
  auto& storage = shared_storage<FoldStorage>();
  const std::int64_t c = (block_number() - sample * columns) * kFoldChannels + fold_channel();
  const Folded result =
      kMoments ? fold_moments(tiling, partial, sample, c, storage) : fold_sums(tiling, partial, sample, c, storage);
  if (c >= tiling.C || fold_lane() > 0) return;
  folded[sample * 2 * tiling.C + c] = result.first;
  folded[(sample * 2 + 1) * tiling.C + c] = result.second;
}

// A group's statistics from its channels' moments, and its coefficients of channel_affine.
template <class A>
__global__ __launch_bounds__(kGroupThreads) void group_norm_finish_kernel(GroupNormArgs args, const double* moments,
                                                                          A* coefficients) {
  const std::int64_t number = block_number();
  if (number >= args.N * args.groups) return;
  auto& storage = shared_storage<GroupStorage>();
  const Group group = group_of(args, number);
  const double* own = moments + group.sample * 2 * args.C;
  const double rows = static_cast<double>(args.rows), width = static_cast<double>(group.width);
  double sum = 0, second = 0;
  for (std::int64_t c = group.first + threadIdx.x; c < group.first + group.width; c += kGroupThreads) sum += own[c];
  const double mean = block_sum(sum, storage) / width;
  for (std::int64_t c = group.first + threadIdx.x; c < group.first + group.width; c += kGroupThreads) {
    const double distance = own[c] - mean;
    second += own[args.C + c] + rows * distance * distance;
  }
  const double rstd = 1 / std::sqrt(block_sum(second, storage) / (rows * width) + args.eps);
  const A center = static_cast<A>(mean);
  if (threadIdx.x == 0) {
    static_cast<A*>(args.mean)[number] = center;
    static_cast<A*>(args.rstd)[number] = static_cast<A>(rstd);
  }
  A* table = coefficients + group.sample * 3 * args.C;
  for (std::int64_t c = group.first + threadIdx.x; c < group.first + group.width; c += kGroupThreads) {
    const double scale = rstd * parameter<A>(args.weight, c, 1);
    table[c] = center;
    table[args.C + c] = static_cast<A>(scale);
    table[2 * args.C + c] =
        static_cast<A>(parameter<A>(args.bias, c, 0) - (mean - static_cast<double>(center)) * scale);
  }
}

// A group's coefficients of channel_gradient from its channels' sums of dy and dy (x - mean).
template <class A>
__global__ __launch_bounds__(kGroupThreads) void group_norm_coefficients_kernel(GroupNormArgs args, const double* sums,
                                                                                A* coefficients) {
  const std::int64_t number = block_number();
  if (number >= args.N * args.groups) return;
  auto& storage = shared_storage<GroupStorage>();
  const Group group = group_of(args, number);
  const double* own = sums + group.sample * 2 * args.C;
  double sum = 0, weighted = 0;
  for (std::int64_t c = group.first + threadIdx.x; c < group.first + group.width; c += kGroupThreads) {
    sum += parameter<A>(args.weight, c, 1) * own[c];
    weighted += parameter<A>(args.weight, c, 1) * own[args.C + c];
  }
  sum = block_sum(sum, storage);
  weighted = block_sum(weighted, storage);
  const double n = static_cast<double>(args.rows) * static_cast<double>(group.width);
  const double rstd = static_cast<double>(static_cast<const A*>(args.rstd)[number]);
  A* table = coefficients + group.sample * 4 * args.C;
  for (std::int64_t c = group.first + threadIdx.x; c < group.first + group.width; c += kGroupThreads) {
    table[c] = static_cast<const A*>(args.mean)[number];
    table[args.C + c] = static_cast<A>(rstd * parameter<A>(args.weight, c, 1));
    table[2 * args.C + c] = static_cast<A>(-rstd * rstd * rstd * weighted / n);
    table[3 * args.C + c] = static_cast<A>(-rstd * sum / n);
  }
}

// dweight and dbias of a channel a thread, over the samples.
template <class A>
__global__ __launch_bounds__(kMapThreads) void group_norm_parameters_kernel(GroupNormArgs args, const double* sums) {
  const std::int64_t width = quotient(args.C, args.groups);
  for (std::int64_t c = global_thread(); c < args.C; c += global_threads()) {
    const A* rstd = static_cast<const A*>(args.rstd) + quotient(c, width);
    double dweight = 0, dbias = 0;
    for (std::int64_t sample = 0; sample < args.N && args.rows > 0; ++sample) {
      dbias += sums[sample * 2 * args.C + c];
      dweight += sums[(sample * 2 + 1) * args.C + c] * static_cast<double>(rstd[sample * args.groups]);
    }
    static_cast<A*>(args.dweight)[c] = static_cast<A>(dweight);
    static_cast<A*>(args.dbias)[c] = static_cast<A>(dbias);
  }
}

LaunchConfig group_config(const GroupNormArgs& args) {
  return {.grid = grid_of(args.N * args.groups), .block = {kGroupThreads}, .shared_bytes = sizeof(GroupStorage)};
}

std::shared_ptr<void> scratch(std::int64_t count, std::size_t itemsize, Stream stream) {
  return allocate(static_cast<std::size_t>(count) * itemsize, {DeviceType::cuda, stream.device});
}

// Adds up partial over each sample's chunks: (N, 2, C).
template <bool kMoments>
std::shared_ptr<void> fold_chunks(const ChannelTiling& tiling, const std::shared_ptr<void>& partial, Stream stream) {
  auto folded = scratch(tiling.samples * 2 * tiling.C, sizeof(double), stream);
  launch<group_norm_fold_kernel<kMoments>>(fold_config(tiling.samples, tiling.C), stream, tiling,
                                           fold_columns(tiling.C), static_cast<const double*>(partial.get()),
                                           static_cast<double*>(folded.get()));
  return folded;
}

template <class A>
void forward(const GroupNormArgs& args, Stream stream) {
  const ChannelTiling tiling = sum_tiling(args.N, args.rows, args.C, args.dtype, args.x, args.x);
  const auto partial = scratch(args.N * tiling.chunks * 2 * args.C, sizeof(double), stream);
  const auto coefficients = scratch(args.N * 3 * args.C, sizeof(A), stream);
  channel_statistics(tiling, args.dtype, args.x, static_cast<double*>(partial.get()), stream);
  const auto moments = fold_chunks<true>(tiling, partial, stream);
  launch<group_norm_finish_kernel<A>>(group_config(args), stream, args, static_cast<const double*>(moments.get()),
                                      static_cast<A*>(coefficients.get()));
  channel_affine(args.N, args.rows, args.C, args.dtype, args.x, coefficients.get(), args.y, stream);
}

template <class A>
void backward(const GroupNormArgs& args, Stream stream) {
  std::shared_ptr<void> sums;
  if (args.N * args.rows > 0) {
    const ChannelTiling tiling = sum_tiling(args.N, args.rows, args.C, args.dtype, args.x, args.dy);
    const auto partial = scratch(args.N * tiling.chunks * 2 * args.C, sizeof(double), stream);
    const auto coefficients = scratch(args.N * 4 * args.C, sizeof(A), stream);
    channel_gradient_sums(tiling, args.dtype, args.x, args.dy, args.mean, args.groups,
                          static_cast<double*>(partial.get()), stream);
    sums = fold_chunks<false>(tiling, partial, stream);
    launch<group_norm_coefficients_kernel<A>>(group_config(args), stream, args, static_cast<const double*>(sums.get()),
                                              static_cast<A*>(coefficients.get()));
    channel_gradient(args.N, args.rows, args.C, args.dtype, args.x, args.dy, coefficients.get(), args.y, stream);
  }
  launch<group_norm_parameters_kernel<A>>({.grid = {blocks_for(args.C)}, .block = {kMapThreads}}, stream, args,
                                          static_cast<const double*>(sums.get()));
}

}  // namespace

void group_norm(const GroupNormArgs& args, Stream stream) {
  if (args.N * args.C == 0) return;
  args.dtype == Dtype::f64 ? forward<double>(args, stream) : forward<float>(args, stream);
}

void group_norm_backward(const GroupNormArgs& args, Stream stream) {
  if (args.C == 0) return;
  args.dtype == Dtype::f64 ? backward<double>(args, stream) : backward<float>(args, stream);
}

}  // namespace drupe::cuda
