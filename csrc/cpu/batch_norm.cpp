// Batch normalisation by the sweeps of channel_norm.h. Bytes: training reads x twice and writes y; inference reads x
// once and writes y; backward reads x and dy twice and writes dx. Second sweeps go backwards.
#include "ops/batch_norm.h"

#include "core/dispatch.h"
#include "cpu/channel_norm.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrainChannels = 64;

template <class T>
void update_running(const BatchNormArgs& args, std::int64_t c, double mean, double variance) {
  if (!args.running_mean) return;
  const double n = static_cast<double>(args.rows);
  T& running_mean = static_cast<T*>(args.running_mean)[c * args.running_mean_stride];
  T& running_var = static_cast<T*>(args.running_var)[c * args.running_var_stride];
  running_mean = static_cast<T>((1 - args.momentum) * static_cast<double>(running_mean) + args.momentum * mean);
  running_var =
      static_cast<T>((1 - args.momentum) * static_cast<double>(running_var) + args.momentum * variance * (n / (n - 1)));
}

template <Isa I, class S>
void forward(const BatchNormArgs& args) {
  using T = Accumulator<S>;
  const ChannelBlocks b{.samples = 1, .rows = args.rows, .C = args.C};
  const S* x = static_cast<const S*>(args.x);
  const Scratch<T> coefficients(static_cast<std::size_t>(3 * b.C));  // in training the moments first
  if (args.training && args.rows > 0) channel_statistics<I, S>(b, x, coefficients.data());
  parallel_ranges(b.C, kGrainChannels, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      T* coefficient = coefficients.data() + c;
      double mean, variance;
      if (args.training) {
        if (args.rows == 0) {  // no values, no statistics
          mean = variance = std::numeric_limits<double>::quiet_NaN();
        } else {
          mean = static_cast<double>(coefficient[0]) + static_cast<double>(coefficient[b.C]);
          variance = static_cast<double>(std::max(coefficient[2 * b.C], T(0))) / static_cast<double>(b.rows);
          update_running<T>(args, c, mean, variance);
        }
      } else {
        mean = static_cast<double>(static_cast<const T*>(args.running_mean)[c * args.running_mean_stride]);
        variance = static_cast<double>(static_cast<const T*>(args.running_var)[c * args.running_var_stride]);
      }
      const double rstd = 1 / std::sqrt(variance + args.eps);
      const double scale = rstd * parameter<T>(args.weight, c, 1);
      const T center = static_cast<T>(mean);
      static_cast<T*>(args.mean)[c] = center;
      static_cast<T*>(args.rstd)[c] = static_cast<T>(rstd);
      coefficient[0] = center;
      coefficient[b.C] = static_cast<T>(scale);
      coefficient[2 * b.C] =
          static_cast<T>(parameter<T>(args.bias, c, 0) - (mean - static_cast<double>(center)) * scale);
    }
  });
  channel_affine<I, S>(b, x, coefficients.data(), static_cast<S*>(args.y));
}

template <Isa I, class S>
void backward(const BatchNormArgs& args) {
  using T = Accumulator<S>;
  const ChannelBlocks b{.samples = 1, .rows = args.rows, .C = args.C};
  const S* x = static_cast<const S*>(args.x);
  const S* dy = static_cast<const S*>(args.dy);
  const T* mean = static_cast<const T*>(args.mean);
  const Scratch<T> sums(static_cast<std::size_t>(2 * b.C));  // of dy, of dy (x - mean)
  const Scratch<T> coefficients(static_cast<std::size_t>(4 * b.C));
  channel_gradient_sums<I, S>(b, x, dy, mean, sums.data());
  parallel_ranges(b.C, kGrainChannels, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      const double sum = static_cast<double>(sums.data()[c]);
      const double weighted = static_cast<double>(sums.data()[b.C + c]);
      const double rstd = static_cast<double>(static_cast<const T*>(args.rstd)[c]);
      const double scale = rstd * parameter<T>(args.weight, c, 1);
      const double n = args.training ? static_cast<double>(std::max<std::int64_t>(1, args.rows)) : 1;
      static_cast<T*>(args.dweight)[c] = args.rows == 0 ? T(0) : static_cast<T>(weighted * rstd);
      static_cast<T*>(args.dbias)[c] = static_cast<T>(sum);
      T* coefficient = coefficients.data() + c;
      coefficient[0] = mean[c];
      coefficient[b.C] = static_cast<T>(scale);
      coefficient[2 * b.C] = args.training ? static_cast<T>(-scale * rstd * rstd * weighted / n) : T(0);
      coefficient[3 * b.C] = args.training ? static_cast<T>(-scale * sum / n) : T(0);
    }
  });
  channel_gradient<I, S>(b, x, dy, coefficients.data(), static_cast<S*>(args.y));
}

}  // namespace

template <Isa I>
void batch_norm(const BatchNormArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { forward<I, S>(args); });
}

template <Isa I>
void batch_norm_backward(const BatchNormArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { backward<I, S>(args); });
}

template void batch_norm<Isa::DRUPE_ISA>(const BatchNormArgs&);
template void batch_norm_backward<Isa::DRUPE_ISA>(const BatchNormArgs&);

}  // namespace drupe::cpu
