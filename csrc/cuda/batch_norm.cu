// Batch normalisation by the sweeps of channel_norm.h, and between them a kernel whose blocks add up the chunks of 32
// channels each, 32 lanes a channel, and work out the coefficients in double.
// Bytes: training reads x twice and writes y; inference reads x once and writes y; backward reads x and dy twice and
// writes dx.
#include "ops/batch_norm.h"

#include "core/cuda.h"
#include "core/dispatch.h"
#include "cuda/channel_norm.h"
#include "cuda/tile/channel_fold.cuh"

namespace drupe::cuda {
namespace {

template <class A>
__device__ __forceinline__ void update_running(const BatchNormArgs& args, std::int64_t c, double batch_mean,
                                               double batch_variance) {
  const double n = static_cast<double>(args.rows);
  A& mean = static_cast<A*>(args.running_mean)[c * args.running_mean_stride];
  A& var = static_cast<A*>(args.running_var)[c * args.running_var_stride];
  mean = static_cast<A>((1 - args.momentum) * static_cast<double>(mean) + args.momentum * batch_mean);
  var = static_cast<A>((1 - args.momentum) * static_cast<double>(var) + args.momentum * batch_variance * (n / (n - 1)));
}

// The statistics, and the coefficients of channel_affine.
template <class A>
__global__ __launch_bounds__(kFoldThreads) void batch_norm_finish_kernel(BatchNormArgs args, ChannelTiling tiling,
                                                                         const double* partial, A* coefficients) {
  auto& storage = shared_storage<FoldStorage>();
  const std::int64_t c = block_number() * kFoldChannels + fold_channel();
  double mean = 0, variance = 0;
  if (args.training) {
    const Folded moments = fold_moments(tiling, partial, 0, c, storage);
    mean = moments.first;
    variance = moments.second / static_cast<double>(args.rows);
  }
  if (c >= args.C || fold_lane() > 0) return;
  if (!args.training) {
    mean = static_cast<double>(static_cast<const A*>(args.running_mean)[c * args.running_mean_stride]);
    variance = static_cast<double>(static_cast<const A*>(args.running_var)[c * args.running_var_stride]);
  } else if (args.running_mean && args.rows > 0) {
    update_running<A>(args, c, mean, variance);
  }
  const double rstd = 1 / std::sqrt(variance + args.eps);
  const double scale = rstd * parameter<A>(args.weight, c, 1);
  const A center = static_cast<A>(mean);
  static_cast<A*>(args.mean)[c] = center;
  static_cast<A*>(args.rstd)[c] = static_cast<A>(rstd);
  coefficients[c] = center;
  coefficients[args.C + c] = static_cast<A>(scale);
  coefficients[2 * args.C + c] =
      static_cast<A>(parameter<A>(args.bias, c, 0) - (mean - static_cast<double>(center)) * scale);
}

// The parameters' gradients, and the coefficients of channel_gradient.
template <class A>
__global__ __launch_bounds__(kFoldThreads) void batch_norm_backward_finish_kernel(BatchNormArgs args,
                                                                                  ChannelTiling tiling,
                                                                                  const double* partial,
                                                                                  A* coefficients) {
  auto& storage = shared_storage<FoldStorage>();
  const std::int64_t c = block_number() * kFoldChannels + fold_channel();
  const Folded sums = fold_sums(tiling, partial, 0, c, storage);  // of dy, of dy (x - mean)
  if (c >= args.C || fold_lane() > 0) return;
  const double rstd = static_cast<double>(static_cast<const A*>(args.rstd)[c]);
  const double scale = rstd * parameter<A>(args.weight, c, 1);
  const double n = args.rows == 0 ? 1 : static_cast<double>(args.rows);
  static_cast<A*>(args.dweight)[c] = args.rows == 0 ? A(0) : static_cast<A>(sums.second * rstd);
  static_cast<A*>(args.dbias)[c] = static_cast<A>(sums.first);
  coefficients[c] = static_cast<const A*>(args.mean)[c];
  coefficients[args.C + c] = static_cast<A>(scale);
  coefficients[2 * args.C + c] = args.training ? static_cast<A>(-scale * rstd * rstd * sums.second / n) : A(0);
  coefficients[3 * args.C + c] = args.training ? static_cast<A>(-scale * sums.first / n) : A(0);
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
    launch<batch_norm_finish_kernel<A>>(fold_config(1, args.C), stream, args, tiling,
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
    launch<batch_norm_backward_finish_kernel<A>>(fold_config(1, args.C), stream, args, tiling,
                                                 static_cast<const double*>(partial.get()),
                                                 static_cast<A*>(coefficients.get()));
  });
  channel_gradient(1, args.rows, args.C, args.dtype, args.x, args.dy, coefficients.get(), args.y, stream);
}

}  // namespace drupe::cuda
