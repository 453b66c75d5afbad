// layer_norm and rms_norm; row_norm.cuh says who owns what. A row that fits stays in registers from its only read on; a
// block sweeps a longer one three times, from L2 after the first. Bytes: x (and residual) once, y once.
#include "cuda/row_norm.cuh"

#include "core/dispatch.h"

namespace drupe::cuda {
namespace {

constexpr int kFew = 8, kMany = 32;  // a thread's elements of a row in registers

template <class A>
struct NormStorage {
  ReduceStorage<A, kNormThreads> sum, difference, squares;
};

// mean is a rounded number; mean + correction is the mean.
template <class A>
struct Statistics {
  A mean, correction, rstd;

  // From the sums of h - mean and of its square.
  __device__ __forceinline__ void finish(const RowNormArgs& args, A difference, A squares) {
    const A n = static_cast<A>(args.size);
    correction = difference / n;
    const A variance = squares / n - correction * correction;
    rstd = A(1) / std::sqrt((variance < A(0) ? A(0) : variance) + static_cast<A>(args.eps));
  }
  __device__ __forceinline__ void save(const RowNormArgs& args, std::int64_t row) const {
    if (args.centered) static_cast<A*>(args.mean)[row] = mean + correction;
    static_cast<A*>(args.rstd)[row] = rstd;
  }
};

template <class S, class A>
__device__ __forceinline__ void store_normalized(const NormPlan& plan, std::int64_t row, std::int64_t begin,
                                                 std::int64_t size, const Statistics<A>& statistics, A* h) {
  constexpr int kPack = kPackSize<S>;
  A weight[kPack], bias[kPack];
  load_norm_parameter<kPack>(plan, plan.args.weight, begin, A(1), weight);
  load_norm_parameter<kPack>(plan, plan.args.bias, begin, A(0), bias);
#pragma unroll
  for (int k = 0; k < kPack; ++k) {
    const A xhat = ((h[k] - statistics.mean) - statistics.correction) * statistics.rstd;
    h[k] = xhat * weight[k] + bias[k];
  }
  store_block<kPack>(static_cast<S*>(plan.args.y) + row * plan.args.size, begin, size, plan.aligned, h);
}

template <class S, int kItems>
__global__ __launch_bounds__(kNormThreads) void row_norm_kernel(NormPlan plan) {
  using A = Accumulator<S>;
  constexpr int kPack = kPackSize<S>;
  auto& storage = shared_storage<NormStorage<A>>();
  const int lane = static_cast<int>(threadIdx.x) % plan.lanes;
  const std::int64_t row =
      std::int64_t{blockIdx.x} * (kNormThreads / plan.lanes) + static_cast<int>(threadIdx.x) / plan.lanes;
  const bool counts = row < plan.args.rows;
  const std::int64_t size = counts ? plan.args.size : 0;
  A h[kItems];
#pragma unroll
  for (int i = 0; i < kItems; i += kPack) {
    load_norm_input<S>(plan, row, (i / kPack * plan.lanes + lane) * kPack, size, h + i);
  }
  Statistics<A> statistics{};
  A difference = A(0), squares = A(0);
  if (plan.args.centered) {
    A sum = A(0);
#pragma unroll
    for (int i = 0; i < kItems; ++i) sum += h[i];
    statistics.mean = group_reduce(sum, Sum{}, plan.lanes, storage.sum) / static_cast<A>(plan.args.size);
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const std::int64_t column = (i / kPack * plan.lanes + lane) * kPack + i % kPack;
    const A d = column < size ? h[i] - statistics.mean : A(0);
    difference += d;
    squares += d * d;
  }
  if (plan.args.centered) {
    difference = group_reduce(difference, Sum{}, plan.lanes, storage.difference);
  } else {
    difference = A(0);
  }
  statistics.finish(plan.args, difference, group_reduce(squares, Sum{}, plan.lanes, storage.squares));
  if (!counts) return;
  if (lane == 0) statistics.save(plan.args, row);
#pragma unroll
  for (int i = 0; i < kItems; i += kPack) {
    store_normalized<S>(plan, row, (i / kPack * plan.lanes + lane) * kPack, size, statistics, h + i);
  }
}

template <class S>
__global__ __launch_bounds__(kNormThreads) void row_norm_long_kernel(NormPlan plan) {
  using A = Accumulator<S>;
  constexpr int kPack = kPackSize<S>;
  auto& storage = shared_storage<NormStorage<A>>();
  const std::int64_t row = blockIdx.x, size = plan.args.size;
  const std::int64_t first = std::int64_t{threadIdx.x} * kPack, step = std::int64_t{kNormThreads} * kPack;
  Statistics<A> statistics{};
  A h[kPack];
  if (plan.args.centered) {
    A sum = A(0);
    for (std::int64_t begin = first; begin < size; begin += step) {
      load_norm_input<S>(plan, row, begin, size, h);
      A part = h[0];
#pragma unroll
      for (int k = 1; k < kPack; ++k) part += h[k];
      sum += part;
    }
    statistics.mean = block_reduce<kNormThreads>(sum, Sum{}, storage.sum) / static_cast<A>(size);
  }
  A difference = A(0), squares = A(0);
  for (std::int64_t begin = first; begin < size; begin += step) {
    load_norm_input<S>(plan, row, begin, size, h);
    A some = A(0), some_squares = A(0);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const A d = begin + k < size ? h[k] - statistics.mean : A(0);
      some += d;
      some_squares += d * d;
    }
    difference += some;
    squares += some_squares;
  }
  difference = block_reduce<kNormThreads>(difference, Sum{}, storage.difference);
  squares = block_reduce<kNormThreads>(squares, Sum{}, storage.squares);
  statistics.finish(plan.args, plan.args.centered ? difference : A(0), squares);
  if (threadIdx.x == 0) statistics.save(plan.args, row);
  for (std::int64_t begin = first; begin < size; begin += step) {
    load_norm_input<S>(plan, row, begin, size, h);
    store_normalized<S>(plan, row, begin, size, statistics, h);
  }
}

}  // namespace

void row_norm(const RowNormArgs& args, Stream stream) {
  if (args.rows == 0) return;
  dispatch_float(args.dtype, [&]<class S>() {
    const NormPlan plan = plan_norm<S>(args, kFew, kMany);
    const LaunchConfig config{.grid = {blocks_for(args.rows, 1, kNormThreads / plan.lanes)},
                              .block = {kNormThreads},
                              .shared_bytes = sizeof(NormStorage<Accumulator<S>>)};
    if (plan.kept == kFew) return launch<row_norm_kernel<S, kFew>>(config, stream, plan);
    if (plan.kept == kMany) return launch<row_norm_kernel<S, kMany>>(config, stream, plan);
    launch<row_norm_long_kernel<S>>(config, stream, plan);
  });
}

}  // namespace drupe::cuda
