// Group normalisation by the sweeps of channel_norm.h. Bytes: forward reads x twice and writes y; backward reads x and
// dy twice and writes dx.
#include "ops/group_norm.h"

#include "core/dispatch.h"
#include "cpu/channel_norm.h"

namespace drupe::cpu {
namespace {

template <class T>
double parameter(const void* values, std::int64_t c, double otherwise) {
  return values ? static_cast<double>(static_cast<const T*>(values)[c]) : otherwise;
}

// Mean and biased variance of one sample's group from the blocks' moments.
template <class T>
void combine(const ChannelBlocks& b, const T* partial, std::int64_t begin, std::int64_t end, double& mean,
             double& variance) {
  const double n = static_cast<double>(b.rows) * static_cast<double>(end - begin);
  mean = 0;
  for (std::int64_t block = 0; block < b.blocks; ++block) {
    const T* p = partial + block * 3 * b.C;
    for (std::int64_t c = begin; c < end; ++c) {
      mean += static_cast<double>(b.block_size(block)) * static_cast<double>(p[c]) + static_cast<double>(p[b.C + c]);
    }
  }
  mean /= n;
  double second = 0;
  for (std::int64_t block = 0; block < b.blocks; ++block) {
    const T* p = partial + block * 3 * b.C;
    for (std::int64_t c = begin; c < end; ++c) {
      // About the total mean: sum((x - m)^2) + 2 (m - mean) sum(x - m) + size (m - mean)^2.
      const double distance = static_cast<double>(p[c]) - mean;
      second += static_cast<double>(p[2 * b.C + c]) + 2 * distance * static_cast<double>(p[b.C + c]) +
                static_cast<double>(b.block_size(block)) * distance * distance;
    }
  }
  variance = second / n < 0 ? 0 : second / n;
}

template <Isa I, class S>
void forward(const GroupNormArgs& args) {
  using T = Accumulator<S>;
  const ChannelBlocks b{.samples = args.N, .rows = args.rows, .C = args.C};
  const std::int64_t width = args.C / args.groups;
  const S* x = static_cast<const S*>(args.x);
  const Scratch<T> partial(static_cast<std::size_t>(b.samples * b.blocks * 3 * b.C));
  const Scratch<T> coefficients(static_cast<std::size_t>(b.samples * 3 * b.C));
  channel_statistics<I, S>(b, x, partial.data());
  parallel_for(args.N, [&](std::int64_t sample) {
    T* table = coefficients.data() + sample * 3 * b.C;
    for (std::int64_t group = 0; group < args.groups; ++group) {
      double mean, variance;
      combine(b, partial.data() + sample * b.blocks * 3 * b.C, group * width, (group + 1) * width, mean, variance);
      const double rstd = 1 / std::sqrt(variance + args.eps);
      const T center = static_cast<T>(mean);
      static_cast<T*>(args.mean)[sample * args.groups + group] = center;
      static_cast<T*>(args.rstd)[sample * args.groups + group] = static_cast<T>(rstd);
      for (std::int64_t c = group * width; c < (group + 1) * width; ++c) {
        const double scale = rstd * parameter<T>(args.weight, c, 1);
        table[c] = center;
        table[b.C + c] = static_cast<T>(scale);
        table[2 * b.C + c] =
            static_cast<T>(parameter<T>(args.bias, c, 0) - (mean - static_cast<double>(center)) * scale);
      }
    }
  });
  channel_affine<I, S>(b, x, coefficients.data(), static_cast<S*>(args.y));
}

// One sample's coefficients of dx from its channels' sums of dy and dy (x - mean).
template <class T>
void gradient_coefficients(const GroupNormArgs& args, std::int64_t sample, const double* sums, T* table) {
  const std::int64_t C = args.C;
  const std::int64_t width = C / args.groups;
  const double n = static_cast<double>(args.rows) * static_cast<double>(width);
  for (std::int64_t group = 0; group < args.groups; ++group) {
    double sum = 0, weighted = 0;
    for (std::int64_t c = group * width; c < (group + 1) * width; ++c) {
      sum += parameter<T>(args.weight, c, 1) * sums[c];
      weighted += parameter<T>(args.weight, c, 1) * sums[C + c];
    }
    const T mean = static_cast<const T*>(args.mean)[sample * args.groups + group];
    const double rstd = static_cast<double>(static_cast<const T*>(args.rstd)[sample * args.groups + group]);
    for (std::int64_t c = group * width; c < (group + 1) * width; ++c) {
      table[c] = mean;
      table[C + c] = static_cast<T>(rstd * parameter<T>(args.weight, c, 1));
      table[2 * C + c] = static_cast<T>(-rstd * rstd * rstd * weighted / n);
      table[3 * C + c] = static_cast<T>(-rstd * sum / n);
    }
  }
}

template <Isa I, class S>
void backward(const GroupNormArgs& args) {
  using T = Accumulator<S>;
  const ChannelBlocks b{.samples = args.N, .rows = args.rows, .C = args.C};
  const std::int64_t width = args.C / args.groups;
  const S* x = static_cast<const S*>(args.x);
  const S* dy = static_cast<const S*>(args.dy);
  const Scratch<T> center(static_cast<std::size_t>(args.N * args.C));
  for (std::int64_t i = 0; i < args.N * args.C; ++i) {
    center.data()[i] = static_cast<const T*>(args.mean)[i / args.C * args.groups + i % args.C / width];
  }
  const Scratch<T> partial(static_cast<std::size_t>(b.samples * b.blocks * 2 * b.C));
  channel_gradient_sums<I, S>(b, x, dy, center.data(), partial.data());
  const Scratch<double> sums(static_cast<std::size_t>(args.N * 2 * b.C));  // (N, 2, C)
  const Scratch<T> coefficients(static_cast<std::size_t>(args.N * 4 * b.C));
  parallel_for(args.N, [&](std::int64_t sample) {
    double* own = sums.data() + sample * 2 * b.C;
    for (std::int64_t i = 0; i < 2 * b.C; ++i) own[i] = 0;
    for (std::int64_t block = 0; block < b.blocks; ++block) {
      const T* p = partial.data() + (sample * b.blocks + block) * 2 * b.C;
      for (std::int64_t i = 0; i < 2 * b.C; ++i) own[i] += static_cast<double>(p[i]);
    }
    gradient_coefficients<T>(args, sample, own, coefficients.data() + sample * 4 * b.C);
  });
  channel_gradient<I, S>(b, x, dy, coefficients.data(), static_cast<S*>(args.y));
  parallel_ranges(b.C, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      double dweight = 0, dbias = 0;
      for (std::int64_t sample = 0; sample < args.N && args.rows > 0; ++sample) {
        const double* own = sums.data() + sample * 2 * b.C;
        dbias += own[c];
        dweight +=
            own[b.C + c] * static_cast<double>(static_cast<const T*>(args.rstd)[sample * args.groups + c / width]);
      }
      static_cast<T*>(args.dweight)[c] = static_cast<T>(dweight);
      static_cast<T*>(args.dbias)[c] = static_cast<T>(dbias);
    }
  });
}

}  // namespace

template <Isa I>
void group_norm(const GroupNormArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { forward<I, S>(args); });
}

template <Isa I>
void group_norm_backward(const GroupNormArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { backward<I, S>(args); });
}

template void group_norm<Isa::DRUPE_ISA>(const GroupNormArgs&);
template void group_norm_backward<Isa::DRUPE_ISA>(const GroupNormArgs&);

}  // namespace drupe::cpu
