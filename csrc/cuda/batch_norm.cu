// Batch normalisation by the sweeps of channel_norm.h, and between them a kernel whose blocks add up the chunks of 32
// channels each, 16 lanes a channel, and work out the coefficients in double.
// Bytes: training reads x twice and writes y; inference reads x once and writes y; backward reads x and dy twice and
// writes dx.
#include "ops/batch_norm.h"

#include "core/cuda.h"
#include "core/dispatch.h"
#include "cuda/channel_norm.h"
#include "cuda/tile/fold.cuh"
#include "cuda/tile/grid.cuh"

namespace drupe::cuda {
namespace {

template <class A>
__device__ __forceinline__ double parameter(const void* values, std::int64_t c, double otherwise) {
  return values ? static_cast<double>(static_cast<const A*>(values)[c]) : otherwise;
}

struct Moments {
  double mean, variance;
};

// Of channel c, from the chunks' means and squares; NaN where there are no rows. All threads of the block call it.
__device__ __forceinline__ Moments combine(const ChannelTiling& tiling, const double* partial, std::int64_t c,
                                           FoldStorage& storage) {
  const double n = static_cast<double>(tiling.rows);
  const bool active = c < tiling.C;
  double sum = 0, second = 0;
  for (std::int64_t chunk = fold_lane(); active && chunk < tiling.chunks; chunk += kFoldLanes) {
    sum += static_cast<double>(tiling.chunk_size(chunk)) * partial[chunk * 2 * tiling.C + c];
  }
  const double mean = fold(sum, storage) / n;
  for (std::int64_t chunk = fold_lane(); active && chunk < tiling.chunks; chunk += kFoldLanes) {
    const double* p = partial + chunk * 2 * tiling.C + c;
    const double distance = p[0] - mean;
    second += p[tiling.C] + static_cast<double>(tiling.chunk_size(chunk)) * distance * distance;
  }
  return {.mean = mean, .variance = fold(second, storage) / n};
}

template <class A>
__device__ __forceinline__ void update_running(const BatchNormArgs& args, std::int64_t c, const Moments& batch) {
  const double n = static_cast<double>(args.rows);
  A& mean = static_cast<A*>(args.running_mean)[c * args.running_mean_stride];
  A& var = static_cast<A*>(args.running_var)[c * args.running_var_stride];
  mean = static_cast<A>((1 - args.momentum) * static_cast<double>(mean) + args.momentum * batch.mean);
  var = static_cast<A>((1 - args.momentum) * static_cast<double>(var) + args.momentum * batch.variance * (n / (n - 1)));
}

// The statistics, and the coefficients of channel_affine.
template <class A>
__global__ __launch_bounds__(kFoldThreads) void batch_norm_finish_kernel(BatchNormArgs args, ChannelTiling tiling,
                                                                         const double* partial, A* coefficients) {
  auto& storage = shared_storage<FoldStorage>();
  const std::int64_t c = block_number() * kFoldColumns + fold_column();
  Moments batch{};
  if (args.training) batch = combine(tiling, partial, c, storage);
  if (c >= args.C || fold_lane() > 0) return;
  if (!args.training) {
    batch.mean = static_cast<double>(static_cast<const A*>(args.running_mean)[c * args.running_mean_stride]);
    batch.variance = static_cast<double>(static_cast<const A*>(args.running_var)[c * args.running_var_stride]);
  } else if (args.running_mean && args.rows > 0) {
    update_running<A>(args, c, batch);
  }
  const double rstd = 1 / std::sqrt(batch.variance + args.eps);
  const double scale = rstd * parameter<A>(args.weight, c, 1);
  const A center = static_cast<A>(batch.mean);
  static_cast<A*>(args.mean)[c] = center;
  static_cast<A*>(args.rstd)[c] = static_cast<A>(rstd);
  coefficients[c] = center;
  coefficients[args.C + c] = static_cast<A>(scale);
  coefficients[2 * args.C + c] =
      static_cast<A>(parameter<A>(args.bias, c, 0) - (batch.mean - static_cast<double>(center)) * scale);
}

// The parameters' gradients, and the coefficients of channel_gradient.
template <class A>
__global__ __launch_bounds__(kFoldThreads) void batch_norm_backward_finish_kernel(BatchNormArgs args,
                                                                                  ChannelTiling tiling,
                                                                                  const double* partial,
                                                                                  A* coefficients) {
  auto& storage = shared_storage<FoldStorage>();
  const std::int64_t c = block_number() * kFoldColumns + fold_column();
  double sum = 0, weighted = 0;  // of dy, of dy (x - mean)
  for (std::int64_t chunk = fold_lane(); c < args.C && chunk < tiling.chunks; chunk += kFoldLanes) {
    sum += partial[chunk * 2 * args.C + c];
    weighted += partial[(chunk * 2 + 1) * args.C + c];
  }
  sum = fold(sum, storage);
  weighted = fold(weighted, storage);
  if (c >= args.C || fold_lane() > 0) return;
  const double rstd = static_cast<double>(static_cast<const A*>(args.rstd)[c]);
  const double scale = rstd * parameter<A>(args.weight, c, 1);
  const double n = args.rows == 0 ? 1 : static_cast<double>(args.rows);
  static_cast<A*>(args.dweight)[c] = args.rows == 0 ? A(0) : static_cast<A>(weighted * rstd);
  static_cast<A*>(args.dbias)[c] = static_cast<A>(sum);
  coefficients[c] = static_cast<const A*>(args.mean)[c];
  coefficients[args.C + c] = static_cast<A>(scale);
  coefficients[2 * args.C + c] = args.training ? static_cast<A>(-scale * rstd * rstd * weighted / n) : A(0);
  coefficients[3 * args.C + c] = args.training ? static_cast<A>(-scale * sum / n) : A(0);
}

// Calls f.operator()<A>() with the accumulator's type.
template <class F>
void dispatch_accumulator(Dtype dtype, F&& f) {
  if (dtype == Dtype::f64) {
    f.template operator()<double>();
  } else {
    f.template operator()<float>();
  }
}

LaunchConfig finish_config(std::int64_t C) {
  return {.grid = grid_of((C + kFoldColumns - 1) / kFoldColumns),
          .block = {kFoldThreads},
          .shared_bytes = sizeof(FoldStorage)};
}

std::shared_ptr<void> scratch(std::int64_t count, std::size_t itemsize, Stream stream) {
  return allocate(static_cast<std::size_t>(count) * itemsize, {DeviceType::cuda, stream.device});
}

}  // namespace

void batch_norm(const BatchNormArgs& args, Stream stream) {
  if (args.C == 0) return;
  const ChannelTiling tiling = sum_tiling(1, args.rows, args.C, args.dtype, args.x, args.x);
  const auto partial = scratch(args.training ? tiling.chunks * 2 * args.C : 0, sizeof(double), stream);
  const auto coefficients = scratch(3 * args.C, size_of(accumulator_of(args.dtype)), stream);
  if (args.training) channel_statistics(tiling, args.dtype, args.x, static_cast<double*>(partial.get()), stream);
  dispatch_accumulator(args.dtype, [&]<class A>() {
    launch<batch_norm_finish_kernel<A>>(finish_config(args.C), stream, args, tiling,
                                        static_cast<const double*>(partial.get()), static_cast<A*>(coefficients.get()));
  });
  channel_affine(1, args.rows, args.C, args.dtype, args.x, coefficients.get(), args.y, stream);
}

void batch_norm_backward(const BatchNormArgs& args, Stream stream) {
  if (args.C == 0) return;
  const ChannelTiling tiling = sum_tiling(1, args.rows, args.C, args.dtype, args.x, args.dy);
  const auto partial = scratch(tiling.chunks * 2 * args.C, sizeof(double), stream);
  const auto coefficients = scratch(4 * args.C, size_of(accumulator_of(args.dtype)), stream);
  channel_gradient_sums(tiling, args.dtype, args.x, args.dy, args.mean, args.C, static_cast<double*>(partial.get()),
                        stream);
  dispatch_accumulator(args.dtype, [&]<class A>() {
    launch<batch_norm_backward_finish_kernel<A>>(finish_config(args.C), stream, args, tiling,
                                                 static_cast<const double*>(partial.get()),
                                                 static_cast<A*>(coefficients.get()));
  });
  channel_gradient(1, args.rows, args.C, args.dtype, args.x, args.dy, coefficients.get(), args.y, stream);
}

}  // namespace drupe::cuda
