// layer_norm and rms_norm. A task owns a range of rows. Forward: two rows come from memory once, and are swept in cache
// (a first quarter for a number near the mean; both moments; output) side by side, so that their sums' latencies
// overlap and they share the parameters. Backward: four rows at a time, swept twice: the sums that dx needs, together
// with the parameters' gradients (whose traffic four rows share); then dx. Each block of rows has its own partial
// parameter gradients, added up in block order at the end. Bytes: x and y; x, dy and dx. Worklog:
// bench/worklog/row_norm.md.
#include "ops/row_norm.h"

#include "core/dispatch.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/lanes.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrainElements = 16384;  // of a task
constexpr std::int64_t kMaxBlocks = 64;         // of rows, in backward
constexpr std::int64_t kMinBlockRows = 32;
constexpr int kRowsAtOnce = 4;            // in backward
constexpr std::int64_t kMaxAhead = 2048;  // elements to prefetch ahead: the next row, if it is that near

// The parameters of a call, with ones and zeros where there are none.
template <class T>
struct Parameters {
  Parameters(const RowNormArgs& args)
      : constants(args.weight && args.bias ? 0 : static_cast<std::size_t>(2 * args.size)),
        weight(static_cast<const T*>(args.weight)),
        bias(static_cast<const T*>(args.bias)) {
    if (weight && bias) return;
    std::fill_n(constants.data(), args.size, T(1));
    std::fill_n(constants.data() + args.size, args.size, T(0));
    if (!weight) weight = constants.data();
    if (!bias) bias = constants.data() + args.size;
  }
  Scratch<T> constants;
  const T* weight;
  const T* bias;
};

// One row of h = x + residual.
template <Isa I, class S, bool kResidual>
struct InputRow {
  using V = Vec<Accumulator<S>, I>;
  const S* x;
  const S* residual;

  InputRow() = default;
  InputRow(const RowNormArgs& args, std::int64_t row)
      : x(static_cast<const S*>(args.x) + row * args.size),
        residual(kResidual ? static_cast<const S*>(args.residual) + row * args.size : nullptr) {}

  // Asks for what lies `ahead` elements on.
  DRUPE_INLINE void prefetch(std::int64_t i, std::int64_t ahead) const {
    __builtin_prefetch(x + i + ahead);
    if constexpr (kResidual) __builtin_prefetch(residual + i + ahead);
  }

  template <class Lanes>
  DRUPE_INLINE V operator()(std::int64_t i, Lanes lanes) const {
    V h = load<V>(x + i, lanes);
    if constexpr (kResidual) h = h + load<V>(residual + i, lanes);
    return h;
  }
};

// mean is a number near the mean; mean + correction is the mean.
template <class T>
struct RowStatistics {
  T mean, correction, rstd;
};

// Of kRows rows, in one sweep over the deviations from each row's mean over its first quarter. As much as that quarter
// is of the row, the square of its distance from the whole mean is at most three times the variance: at most two bits
// cancel.
template <Isa I, bool kCentered, int kRows, class T, class Row>
DRUPE_INLINE void row_statistics(const Row (&h)[kRows], std::int64_t size, T eps,
                                 RowStatistics<T> (&statistics)[kRows]) {
  using V = Vec<T, I>;
  const T n = static_cast<T>(size);
  const std::int64_t ahead = size * kRows <= kMaxAhead ? size * kRows : 0;
  if constexpr (!kCentered) {
    T squares[kRows];
    sum_vectors<I>(size, squares, [&](std::int64_t i, auto lanes, V(&partial)[kRows]) {
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) {
        h[r].prefetch(i, ahead);
        const V value = h[r](i, lanes);
        partial[r] = fma(value, value, partial[r]);
      }
    });
    for (int r = 0; r < kRows; ++r) statistics[r] = {T(0), T(0), T(1) / std::sqrt(squares[r] / n + eps)};
  } else {
    const std::int64_t quarter = (size + 3) / 4;
    T sums[kRows];
    sum_vectors<I>(quarter, sums, [&](std::int64_t i, auto lanes, V(&partial)[kRows]) {
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) partial[r] = partial[r] + h[r](i, lanes);
    });
    V center[kRows];
    for (int r = 0; r < kRows; ++r) {
      statistics[r].mean = sums[r] / static_cast<T>(quarter);
      center[r] = V::set(statistics[r].mean);
    }
    T moments[2 * kRows];
    sum_vectors<I>(size, moments, [&](std::int64_t i, auto lanes, V(&partial)[2 * kRows]) {
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) {
        h[r].prefetch(i, ahead);
        const V d = only(h[r](i, lanes) - center[r], lanes);
        partial[2 * r] = partial[2 * r] + d;
        partial[2 * r + 1] = fma(d, d, partial[2 * r + 1]);
      }
    });
    for (int r = 0; r < kRows; ++r) {
      const T correction = moments[2 * r] / n;
      const T variance = moments[2 * r + 1] / n - correction * correction;
      statistics[r].correction = correction;
      statistics[r].rstd = T(1) / std::sqrt((variance < T(0) ? T(0) : variance) + eps);
    }
  }
}

template <Isa I, class S, bool kCentered, bool kResidual, int kRows>
DRUPE_INLINE void forward_rows(const RowNormArgs& args, const Accumulator<S>* weight, const Accumulator<S>* bias,
                               std::int64_t row, bool stream) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using Row = InputRow<I, S, kResidual>;
  Row h[kRows];
  for (int r = 0; r < kRows; ++r) h[r] = Row(args, row + r);
  RowStatistics<T> statistics[kRows];
  S* y = static_cast<S*>(args.y) + row * args.size;
  row_statistics<I, kCentered, kRows, T>(h, args.size, static_cast<T>(args.eps), statistics);
  V mean[kRows], rstd[kRows], shift[kRows];
  for (int r = 0; r < kRows; ++r) {
    const RowStatistics<T>& s = statistics[r];
    if constexpr (kCentered) static_cast<T*>(args.mean)[row + r] = s.mean + s.correction;
    static_cast<T*>(args.rstd)[row + r] = s.rstd;
    mean[r] = V::set(s.mean), rstd[r] = V::set(s.rstd), shift[r] = V::set(-s.correction * s.rstd);
  }
  const auto normalized = [&](int r, std::int64_t i, auto lanes, V w, V b) {
    if constexpr (!kCentered) return h[r](i, lanes) * rstd[r] * w;
    return fma(fma(h[r](i, lanes) - mean[r], rstd[r], shift[r]), w, b);
  };
  if (stream || (kPairs<I, S> && has_bf16_dot<I>())) {
    for (int r = 0; r < kRows; ++r) {
      const auto value = [&](std::int64_t i, auto lanes) {
        return normalized(r, i, lanes, load<V>(weight + i, lanes), load<V>(bias + i, lanes));
      };
      write_vectors<I>(y + r * args.size, args.size, value, stream);
    }
    return;
  }
  for_vectors<I, T>(args.size, [&](std::int64_t i, auto lanes) {
    const V w = load<V>(weight + i, lanes), b = load<V>(bias + i, lanes);
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) store(normalized(r, i, lanes, w, b), y + r * args.size + i, lanes);
  });
}

template <Isa I, class S, bool kCentered, bool kResidual>
void forward(const RowNormArgs& args) {
  constexpr int kRows = 2;
  const Parameters<Accumulator<S>> parameters(args);
  const bool stream = passes_caches<S>(args.rows * args.size);
  const std::int64_t fitting = kGrainElements / std::max<std::int64_t>(1, args.size);
  const std::int64_t grain = std::max<std::int64_t>(1, fitting / kRows * kRows);
  parallel_ranges(args.rows, grain, [&](std::int64_t begin, std::int64_t end) {
    const auto rows = [&]<int kCount>(std::integral_constant<int, kCount>, std::int64_t row) {
      forward_rows<I, S, kCentered, kResidual, kCount>(args, parameters.weight, parameters.bias, row, stream);
    };
    std::int64_t row = begin;
    for (; row + kRows <= end; row += kRows) rows(std::integral_constant<int, kRows>(), row);
    if (row < end) rows(std::integral_constant<int, 1>(), row);
    if (stream) stream_fence<I>();
  });
}

// dx of kRows rows from `row` on; adds their share of the parameters' gradients to dweight and dbias.
template <Isa I, class S, bool kCentered, bool kResidual, int kRows>
void backward_rows(const RowNormArgs& args, std::int64_t row, const Accumulator<S>* weight, Accumulator<S>* dweight,
                   Accumulator<S>* dbias) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using Row = InputRow<I, S, kResidual>;
  const S* dy = static_cast<const S*>(args.dy) + row * args.size;
  S* dx = static_cast<S*>(args.y) + row * args.size;
  T mean[kRows], rstd[kRows];
  V sum_g[kRows], sum_gx[kRows];
  for (int r = 0; r < kRows; ++r) {
    mean[r] = kCentered ? static_cast<const T*>(args.mean)[row + r] : T(0);
    rstd[r] = static_cast<const T*>(args.rstd)[row + r];
    sum_g[r] = sum_gx[r] = V::zero();
  }
  for_vectors<I, T>(args.size, [&](std::int64_t i, auto lanes) {
    const V w = load<V>(weight + i, lanes);
    V dw = load<V>(dweight + i, lanes);
    V db = V::zero();
    if constexpr (kCentered) db = load<V>(dbias + i, lanes);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      V xhat = Row(args, row + r)(i, lanes);
      if constexpr (kCentered) xhat = xhat - V::set(mean[r]);
      xhat = xhat * V::set(rstd[r]);
      const V d = load<V>(dy + r * args.size + i, lanes);
      const V g = d * w;
      sum_gx[r] = fma(g, xhat, sum_gx[r]);
      dw = fma(d, xhat, dw);
      if constexpr (kCentered) {
        sum_g[r] = sum_g[r] + g;
        db = db + d;
      }
    }
    store(dw, dweight + i, lanes);
    if constexpr (kCentered) store(db, dbias + i, lanes);
  });
  for (int r = 0; r < kRows; ++r) {
    // dx = rstd g + slope (h - mean) + shift
    const T n = static_cast<T>(args.size);
    const V slope = V::set(-rstd[r] * rstd[r] * (reduce_add(sum_gx[r]) / n));
    const V shift = V::set(-rstd[r] * (reduce_add(sum_g[r]) / n));
    const V center = V::set(mean[r]), scale = V::set(rstd[r]);
    const Row h(args, row + r);
    const auto gradient = [&](std::int64_t i, auto lanes) {
      const V g = load<V>(dy + r * args.size + i, lanes) * load<V>(weight + i, lanes);
      V centered = h(i, lanes);
      if constexpr (kCentered) centered = centered - center;
      return fma(g, scale, fma(centered, slope, shift));
    };
    write_vectors<I>(dx + r * args.size, args.size, gradient, passes_caches<S>(args.rows * args.size));
  }
}

template <Isa I, class S, bool kCentered, bool kResidual>
void backward(const RowNormArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  constexpr int kGradients = kCentered ? 2 : 1;
  const Parameters<T> parameters(args);
  const std::int64_t block_rows =
      std::max({kMinBlockRows, (args.rows + kMaxBlocks - 1) / kMaxBlocks, std::int64_t{kRowsAtOnce}});
  const std::int64_t blocks = (args.rows + block_rows - 1) / block_rows;
  const std::int64_t width = kGradients * args.size;
  const Scratch<T> partial(static_cast<std::size_t>(blocks * width));
  parallel_for(blocks, [&](std::int64_t block) {
    T* dweight = partial.data() + block * width;
    std::fill_n(dweight, width, T(0));
    std::int64_t row = block * block_rows;
    const std::int64_t end = std::min(args.rows, row + block_rows);
    for (; row + kRowsAtOnce <= end; row += kRowsAtOnce) {
      backward_rows<I, S, kCentered, kResidual, kRowsAtOnce>(args, row, parameters.weight, dweight,
                                                             dweight + args.size);
    }
    for (; row < end; ++row) {
      backward_rows<I, S, kCentered, kResidual, 1>(args, row, parameters.weight, dweight, dweight + args.size);
    }
    if (passes_caches<S>(args.rows * args.size)) stream_fence<I>();
  });
  T* const gradients[2] = {static_cast<T*>(args.dweight), static_cast<T*>(args.dbias)};
  parallel_ranges(args.size, 4096, [&](std::int64_t begin, std::int64_t end) {
    for (int k = 0; k < kGradients; ++k) {
      for_vectors<I, T>(end - begin, [&](std::int64_t i, auto lanes) {
        V sum = V::zero();
        const T* source = partial.data() + k * args.size + begin + i;
        for (std::int64_t block = 0; block < blocks; ++block) sum = sum + load<V>(source + block * width, lanes);
        store(sum, gradients[k] + begin + i, lanes);
      });
    }
  });
}

// Calls f.operator()<S, kCentered, kResidual>().
template <class F>
DRUPE_INLINE void dispatch_row_norm(const RowNormArgs& args, F&& f) {
  dispatch_float(args.dtype, [&]<class S>() {
    if (args.centered) {
      args.residual ? f.template operator()<S, true, true>() : f.template operator()<S, true, false>();
    } else {
      args.residual ? f.template operator()<S, false, true>() : f.template operator()<S, false, false>();
    }
  });
}

}  // namespace

template <Isa I>
void row_norm(const RowNormArgs& args) {
  dispatch_row_norm(args,
                    [&]<class S, bool kCentered, bool kResidual>() { forward<I, S, kCentered, kResidual>(args); });
}

template <Isa I>
void row_norm_backward(const RowNormArgs& args) {
  dispatch_row_norm(args,
                    [&]<class S, bool kCentered, bool kResidual>() { backward<I, S, kCentered, kResidual>(args); });
}

template void row_norm<Isa::DRUPE_ISA>(const RowNormArgs&);
template void row_norm_backward<Isa::DRUPE_ISA>(const RowNormArgs&);

}  // namespace drupe::cpu
