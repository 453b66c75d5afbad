// Group normalisation. With the channels last, by the sweeps of channel_norm.h, a sample after the other; with the
// channels first, a sample's group is one run of memory, cut into segments. Either way what is swept twice is found in
// cache the second time, where it fits. Threads share a sample or a group only where there are few of them. Bytes:
// forward reads x and writes y; backward reads x and dy and writes dx. Worklog: bench/worklog/channel_norm.md.
#include "ops/group_norm.h"

#include "core/dispatch.h"
#include "cpu/channel_norm.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kSegment = 16384;  // elements

// body(begin, end) for ranges of `count` parts of so many elements each: parts side by side where that keeps the
// threads busy, one by one otherwise, with what the body itself does in parallel.
template <Isa I, class Body>
void for_parts(std::int64_t count, std::int64_t elements, const Body& body) {
  const std::int64_t threads = num_threads();
  const std::int64_t grain = std::max<std::int64_t>(1, kSegment / std::max<std::int64_t>(1, elements));
  if (count % threads == 0 || count >= 4 * threads || grain > 1) return parallel_ranges(count, grain, body);
  for (std::int64_t part = 0; part < count; ++part) body(part, part + 1);
}

struct Moments {
  double mean, variance;
};

// Stores a group's statistics, and its channels' coefficients of y to table, a (3, C) array.
template <class T>
void finish_group(const GroupNormArgs& args, std::int64_t sample, std::int64_t group, Moments moments, T* table) {
  const std::int64_t width = args.C / args.groups;
  const double rstd = 1 / std::sqrt((moments.variance < 0 ? 0 : moments.variance) + args.eps);
  const T center = static_cast<T>(moments.mean);
  static_cast<T*>(args.mean)[sample * args.groups + group] = center;
  static_cast<T*>(args.rstd)[sample * args.groups + group] = static_cast<T>(rstd);
  const double rest = moments.mean - static_cast<double>(center);
  for (std::int64_t c = group * width; c < (group + 1) * width; ++c) {
    const double scale = rstd * parameter<T>(args.weight, c, 1);
    table[c] = center;
    table[args.C + c] = static_cast<T>(scale);
    table[2 * args.C + c] = static_cast<T>(parameter<T>(args.bias, c, 0) - rest * scale);
  }
}

// A group's channels' coefficients of dx, to table, a (4, C) array, from their sums of dy and dy (x - mean), (2, C).
template <class T>
void finish_gradient(const GroupNormArgs& args, std::int64_t sample, std::int64_t group, const T* sums, T* table) {
  const std::int64_t C = args.C, width = C / args.groups;
  const double n = static_cast<double>(args.rows) * static_cast<double>(width);
  double sum = 0, weighted = 0;
  for (std::int64_t c = group * width; c < (group + 1) * width; ++c) {
    sum += parameter<T>(args.weight, c, 1) * static_cast<double>(sums[c]);
    weighted += parameter<T>(args.weight, c, 1) * static_cast<double>(sums[C + c]);
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

// Of a group, from its channels' moments, a (3, C) array.
template <class T>
Moments join_channels(const T* moments, std::int64_t C, std::int64_t begin, std::int64_t end, std::int64_t rows) {
  const auto mean_of = [&](std::int64_t c) {
    return static_cast<double>(moments[c]) + static_cast<double>(moments[C + c]);
  };
  double mean = 0, squares = 0;
  for (std::int64_t c = begin; c < end; ++c) mean += mean_of(c);
  mean /= static_cast<double>(end - begin);
  for (std::int64_t c = begin; c < end; ++c) {
    const double distance = mean_of(c) - mean;
    squares += static_cast<double>(moments[2 * C + c]) / static_cast<double>(rows) + distance * distance;
  }
  return {mean, squares / static_cast<double>(end - begin)};
}

template <Isa I, class S>
void forward_channels_last(const GroupNormArgs& args) {
  using T = Accumulator<S>;
  const ChannelBlocks b{.samples = args.N, .rows = args.rows, .C = args.C};
  const std::int64_t size = args.rows * args.C, width = args.C / args.groups;
  for_parts<I>(args.N, size, [&](std::int64_t begin, std::int64_t end) {
    const Scratch<T> moments(static_cast<std::size_t>(3 * args.C)), table(static_cast<std::size_t>(3 * args.C));
    for (std::int64_t sample = begin; sample < end; ++sample) {
      const S* x = static_cast<const S*>(args.x) + sample * size;
      channel_statistics<I, S>(b, x, moments.data());
      for (std::int64_t group = 0; group < args.groups; ++group) {
        const Moments own = join_channels(moments.data(), args.C, group * width, (group + 1) * width, args.rows);
        finish_group(args, sample, group, own, table.data());
      }
      channel_affine<I, S>(b, x, table.data(), static_cast<S*>(args.y) + sample * size);
    }
  });
}

template <Isa I, class S>
void backward_channels_last(const GroupNormArgs& args, Accumulator<S>* sums) {
  using T = Accumulator<S>;
  const ChannelBlocks b{.samples = args.N, .rows = args.rows, .C = args.C};
  const std::int64_t size = args.rows * args.C, width = args.C / args.groups;
  for_parts<I>(args.N, size, [&](std::int64_t begin, std::int64_t end) {
    const Scratch<T> center(static_cast<std::size_t>(args.C)), table(static_cast<std::size_t>(4 * args.C));
    for (std::int64_t sample = begin; sample < end; ++sample) {
      const S* x = static_cast<const S*>(args.x) + sample * size;
      const S* dy = static_cast<const S*>(args.dy) + sample * size;
      T* own = sums + sample * 2 * args.C;
      for (std::int64_t group = 0; group < args.groups; ++group) {
        const T mean = static_cast<const T*>(args.mean)[sample * args.groups + group];
        std::fill_n(center.data() + group * width, width, mean);
      }
      channel_gradient_sums<I, S>(b, x, dy, center.data(), own);
      for (std::int64_t group = 0; group < args.groups; ++group) {
        finish_gradient(args, sample, group, own, table.data());
      }
      channel_gradient<I, S>(b, x, dy, table.data(), static_cast<S*>(args.y) + sample * size);
    }
  });
}

// A number near the mean of so many elements, and the sums of the deviations from it and of their squares, as
// block_moments has them.
template <Isa I, class S, class T>
void segment_moments(const S* x, std::int64_t count, T (&moments)[3]) {
  using V = Vec<T, I>;
  const std::int64_t quarter = (count + 3) / 4;
  T sum[1], sums[2];
  sum_vectors<I>(quarter, sum,
                 [&](std::int64_t i, auto lanes, V(&partial)[1]) { partial[0] = partial[0] + load<V>(x + i, lanes); });
  moments[0] = sum[0] / static_cast<T>(quarter);
  const V center = V::set(moments[0]);
  sum_vectors<I>(count, sums, [&](std::int64_t i, auto lanes, V(&partial)[2]) {
    const V d = only(load<V>(x + i, lanes) - center, lanes);
    partial[0] = partial[0] + d;
    partial[1] = fma(d, d, partial[1]);
  });
  moments[1] = sums[0], moments[2] = sums[1];
}

std::int64_t segments_of(std::int64_t elements) {
  return (elements + kSegment - 1) / kSegment;
}

// Of `size` elements from x on.
template <Isa I, class S>
Moments run_moments(const S* x, std::int64_t size) {
  using T = Accumulator<S>;
  const std::int64_t segments = segments_of(size);
  const Scratch<T[3]> parts(static_cast<std::size_t>(segments));
  parallel_for(segments, [&](std::int64_t s) {
    segment_moments<I, S>(x + s * kSegment, std::min(kSegment, size - s * kSegment), parts.data()[s]);
  });
  const double n = static_cast<double>(size);
  double mean = 0, squares = 0;
  const auto count = [&](std::int64_t s) { return static_cast<double>(std::min(kSegment, size - s * kSegment)); };
  for (std::int64_t s = 0; s < segments; ++s) {
    const T* part = parts.data()[s];
    mean += count(s) * static_cast<double>(part[0]) + static_cast<double>(part[1]);
  }
  mean /= n;
  for (std::int64_t s = 0; s < segments; ++s) {
    // About the whole mean: sum((x - m)^2) + 2 (m - mean) sum(x - m) + count (m - mean)^2.
    const T* part = parts.data()[s];
    const double distance = static_cast<double>(part[0]) - mean;
    squares += static_cast<double>(part[2]) + distance * (2 * static_cast<double>(part[1]) + count(s) * distance);
  }
  return {mean, squares / n};
}

// body(c, begin, end) for pieces of the rows of so many channels, several channels to a task where they are short.
template <Isa I, class Body>
void for_channel_pieces(std::int64_t channels, std::int64_t rows, const Body& body) {
  const std::int64_t pieces = segments_of(rows);
  const std::int64_t grain = std::max<std::int64_t>(1, kSegment / rows);
  parallel_ranges(channels * pieces, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t row = i % pieces * kSegment;
      body(i / pieces, row, std::min(rows, row + kSegment));
    }
  });
}

// The sums of dy and of dy (x - mean) per channel of a group, the latter `next` elements behind the former.
template <Isa I, class S>
void plane_gradient_sums(std::int64_t channels, std::int64_t rows, const S* x, const S* dy, Accumulator<S> mean,
                         Accumulator<S>* sums, std::int64_t next) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const std::int64_t pieces = segments_of(rows);
  const Scratch<T[2]> parts(static_cast<std::size_t>(channels * pieces));
  const V center = V::set(mean);
  for_channel_pieces<I>(channels, rows, [&](std::int64_t c, std::int64_t begin, std::int64_t end) {
    const S* source = x + c * rows + begin;
    const S* upstream = dy + c * rows + begin;
    sum_vectors<I>(end - begin, parts.data()[c * pieces + begin / kSegment],
                   [&](std::int64_t i, auto lanes, V(&partial)[2]) {
                     const V d = load<V>(upstream + i, lanes);
                     partial[0] = partial[0] + d;
                     partial[1] = fma(d, load<V>(source + i, lanes) - center, partial[1]);
                   });
  });
  for (std::int64_t c = 0; c < channels; ++c) {
    double sum = 0, weighted = 0;
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
      const T* part = parts.data()[c * pieces + piece];
      sum += static_cast<double>(part[0]);
      weighted += static_cast<double>(part[1]);
    }
    sums[c] = static_cast<T>(sum);
    sums[next + c] = static_cast<T>(weighted);
  }
}

// body(sample, group, where the group's first channel lies) for every sample's groups.
template <Isa I, class Body>
void for_planes(const GroupNormArgs& args, const Body& body) {
  const std::int64_t size = args.C / args.groups * args.rows;
  for_parts<I>(args.N * args.groups, size, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t index = begin; index < end; ++index) {
      body(index / args.groups, index % args.groups, index * size);
    }
  });
}

template <Isa I, class S>
void forward_channels_first(const GroupNormArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const std::int64_t rows = args.rows, width = args.C / args.groups;
  const bool stream = passes_caches<S>(args.N * args.C * rows);
  const Scratch<T> tables(static_cast<std::size_t>(args.N * 3 * args.C));
  for_planes<I>(args, [&](std::int64_t sample, std::int64_t group, std::int64_t offset) {
    const S* x = static_cast<const S*>(args.x) + offset;
    S* y = static_cast<S*>(args.y) + offset;
    T* table = tables.data() + sample * 3 * args.C;
    finish_group(args, sample, group, run_moments<I, S>(x, width * rows), table);
    table += group * width;
    for_channel_pieces<I>(width, rows, [&](std::int64_t c, std::int64_t first, std::int64_t last) {
      const V center = V::set(table[c]), scale = V::set(table[args.C + c]), shift = V::set(table[2 * args.C + c]);
      const S* source = x + c * rows + first;
      const auto value = [&](std::int64_t i, auto lanes) {
        return fma(load<V>(source + i, lanes) - center, scale, shift);
      };
      write_vectors<I>(y + c * rows + first, last - first, value, stream);
      if (stream) stream_fence<I>();
    });
  });
}

template <Isa I, class S>
void backward_channels_first(const GroupNormArgs& args, Accumulator<S>* sums) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const std::int64_t rows = args.rows, width = args.C / args.groups;
  const bool stream = passes_caches<S>(args.N * args.C * rows);
  const Scratch<T> tables(static_cast<std::size_t>(args.N * 4 * args.C));
  for_planes<I>(args, [&](std::int64_t sample, std::int64_t group, std::int64_t offset) {
    const S* x = static_cast<const S*>(args.x) + offset;
    const S* dy = static_cast<const S*>(args.dy) + offset;
    S* dx = static_cast<S*>(args.y) + offset;
    T* own = sums + sample * 2 * args.C;
    T* table = tables.data() + sample * 4 * args.C;
    const T mean = static_cast<const T*>(args.mean)[sample * args.groups + group];
    plane_gradient_sums<I, S>(width, rows, x, dy, mean, own + group * width, args.C);
    finish_gradient(args, sample, group, own, table);
    table += group * width;
    for_channel_pieces<I>(width, rows, [&](std::int64_t c, std::int64_t first, std::int64_t last) {
      const V center = V::set(table[c]), scale = V::set(table[args.C + c]);
      const V slope = V::set(table[2 * args.C + c]), shift = V::set(table[3 * args.C + c]);
      const S* source = x + c * rows + first;
      const S* upstream = dy + c * rows + first;
      const auto value = [&](std::int64_t i, auto lanes) {
        const V rest = fma(load<V>(source + i, lanes) - center, slope, shift);
        return fma(load<V>(upstream + i, lanes), scale, rest);
      };
      write_vectors<I>(dx + c * rows + first, last - first, value, stream);
      if (stream) stream_fence<I>();
    });
  });
}

template <Isa I, class S>
void forward(const GroupNormArgs& args) {
  using T = Accumulator<S>;
  if (args.rows == 0) {
    for (void* statistic : {args.mean, args.rstd}) {
      std::fill_n(static_cast<T*>(statistic), args.N * args.groups, std::numeric_limits<T>::quiet_NaN());
    }
  }
  if (args.N * args.rows * args.C == 0) return;
  args.channels_first ? forward_channels_first<I, S>(args) : forward_channels_last<I, S>(args);
}

template <Isa I, class S>
void backward(const GroupNormArgs& args) {
  using T = Accumulator<S>;
  const std::int64_t C = args.C, width = C / args.groups;
  const std::int64_t samples = args.rows == 0 ? 0 : args.N;
  const Scratch<T> sums(static_cast<std::size_t>(args.N * 2 * C));  // (N, 2, C)
  if (samples * C > 0) {
    args.channels_first ? backward_channels_first<I, S>(args, sums.data())
                        : backward_channels_last<I, S>(args, sums.data());
  }
  parallel_ranges(C, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      double dweight = 0, dbias = 0;
      for (std::int64_t sample = 0; sample < samples; ++sample) {
        const T* own = sums.data() + sample * 2 * C;
        const T rstd = static_cast<const T*>(args.rstd)[sample * args.groups + c / width];
        dbias += static_cast<double>(own[c]);
        dweight += static_cast<double>(own[C + c]) * static_cast<double>(rstd);
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
