// layer_norm and rms_norm. A task owns a range of rows. Forward: a row comes from memory once, and is swept three times
// in cache (mean; variance and the mean's correction; output). Backward: four rows at a time, swept twice: the sums
// that dx needs, together with the parameters' gradients (whose traffic four rows share); then dx. Each block of rows
// has its own partial parameter gradients, added up in block order at the end. Bytes: x and y; x, dy and dx. Worklog:
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
constexpr std::int64_t kMinBlockRows = 16;
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

// mean is a rounded number; mean + correction is the mean.
template <class T>
struct RowStatistics {
  T mean, correction, rstd;
};

template <Isa I, bool kCentered, class T, class Row>
RowStatistics<T> row_statistics(const Row& h, std::int64_t size, T eps) {
  using V = Vec<T, I>;
  const T n = static_cast<T>(size);
  const std::int64_t ahead = std::min(size, kMaxAhead);
  if constexpr (!kCentered) {
    T squares[1];
    sum_vectors<I>(size, squares, [&](std::int64_t i, auto lanes, V(&partial)[1]) {
      h.prefetch(i, ahead);
      const V value = h(i, lanes);
      partial[0] = fma(value, value, partial[0]);
    });
    return {T(0), T(0), T(1) / std::sqrt(squares[0] / n + eps)};
  } else {
    T sum[1];
    sum_vectors<I>(size, sum, [&](std::int64_t i, auto lanes, V(&partial)[1]) {
      h.prefetch(i, ahead);
      partial[0] = partial[0] + h(i, lanes);
    });
    const T mean = sum[0] / n;
    const V center = V::set(mean);
    T moments[2];
    sum_vectors<I>(size, moments, [&](std::int64_t i, auto lanes, V(&partial)[2]) {
      const V d = only(h(i, lanes) - center, lanes);
      partial[0] = partial[0] + d;
      partial[1] = fma(d, d, partial[1]);
    });
    const T correction = moments[0] / n;
    const T variance = moments[1] / n - correction * correction;
    return {mean, correction, T(1) / std::sqrt((variance < T(0) ? T(0) : variance) + eps)};
  }
}

template <Isa I, class S, bool kCentered, bool kResidual>
void forward(const RowNormArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const Parameters<T> parameters(args);
  const bool stream = passes_caches<S>(args.rows * args.size);
  const std::int64_t grain = std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(1, args.size));
  parallel_ranges(args.rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const InputRow<I, S, kResidual> h(args, row);
      const auto s = row_statistics<I, kCentered, T>(h, args.size, static_cast<T>(args.eps));
      if constexpr (kCentered) static_cast<T*>(args.mean)[row] = s.mean + s.correction;
      static_cast<T*>(args.rstd)[row] = s.rstd;
      S* y = static_cast<S*>(args.y) + row * args.size;
      const V mean = V::set(s.mean), rstd = V::set(s.rstd), shift = V::set(-s.correction * s.rstd);
      const auto normalized = [&](std::int64_t i, auto lanes) {
        const V weight = load<V>(parameters.weight + i, lanes);
        if constexpr (!kCentered) return h(i, lanes) * rstd * weight;
        const V xhat = fma(h(i, lanes) - mean, rstd, shift);
        return fma(xhat, weight, load<V>(parameters.bias + i, lanes));
      };
      write_vectors<I>(y, args.size, normalized, stream);
    }
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
