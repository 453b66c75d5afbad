// Pooling on NHWC: vectors across channels, one task per image row of the result. The gradients gather: each input
// element looks at the windows that hold it, so that rows are independent and no element is written twice.
// Bytes: the image once from memory (windows overlap in the caches), the result once.
#include "ops/pool2d.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "core/dispatch.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/lanes.h"
#include "cpu/simd_mask.h"

namespace drupe::cpu {
namespace {

// Along one dimension, the inputs that a window reads and at which tap, or the outputs that hold an element.
struct Run {
  std::int64_t at, tap, count;  // the first of them
};

enum class Of { windows, elements };

// The runs of all windows, or of all elements, along one dimension; from hit to hit it goes on by at_step and tap_step.
struct Runs {
  Scratch<Run> runs;
  std::int64_t at_step, tap_step;

  Runs(const WindowAxis& axis, Of of) : runs(static_cast<std::size_t>(of == Of::windows ? axis.out : axis.in)) {
    if (of == Of::windows) {
      at_step = axis.dilation, tap_step = 1;
      for (std::int64_t i = 0; i < axis.out; ++i) runs[static_cast<std::size_t>(i)] = of_window(axis, i);
    } else {
      const std::int64_t common = std::gcd(axis.stride, axis.dilation);
      at_step = axis.dilation / common, tap_step = -axis.stride / common;
      for (std::int64_t i = 0; i < axis.in; ++i) runs[static_cast<std::size_t>(i)] = of_element(axis, i);
    }
  }

 private:
  static Run of_window(const WindowAxis& axis, std::int64_t i) {
    const std::int64_t start = i * axis.stride - axis.before;
    const std::int64_t tap = start >= 0 ? 0 : (-start + axis.dilation - 1) / axis.dilation;
    const std::int64_t at = start + tap * axis.dilation;
    const std::int64_t inside = at < axis.in ? (axis.in - 1 - at) / axis.dilation + 1 : 0;
    return {at, tap, std::clamp<std::int64_t>(axis.kernel - tap, 0, inside)};
  }

  Run of_element(const WindowAxis& axis, std::int64_t i) const {
    const std::int64_t padded = i + axis.before;
    const std::int64_t reach = padded - axis.dilation * (axis.kernel - 1);
    const std::int64_t end = std::min(axis.out, padded / axis.stride + 1);
    std::int64_t p = reach <= 0 ? 0 : (reach + axis.stride - 1) / axis.stride;
    while (p < end && (padded - p * axis.stride) % axis.dilation != 0) ++p;
    const std::int64_t count = p < end ? (end - 1 - p) / at_step + 1 : 0;
    return {p, (padded - p * axis.stride) / axis.dilation, count};
  }
};

// Numbers of taps as vectors of the accumulator type.
template <class V, class Index>
DRUPE_INLINE void store_taps(V taps, Index* to, int n) {
  if constexpr (std::is_same_v<Index, std::uint8_t> && std::is_same_v<decltype(reduce_add(V::zero())), float>) {
    taps.store(to, n);
  } else {
    decltype(reduce_add(V::zero())) lanes[V::kLanes];
    taps.store(lanes);
    for (int lane = 0; lane < n; ++lane) to[lane] = static_cast<Index>(lanes[lane]);
  }
}

// Which lanes have this tap.
template <Isa I, class V, class Index>
DRUPE_INLINE auto equal_taps(const Index* taps, std::int64_t tap, int n) {
  if constexpr (std::is_same_v<Index, std::uint8_t> && std::is_same_v<decltype(reduce_add(V::zero())), float>) {
    const auto byte = static_cast<std::uint8_t>(tap);
    if (n == V::kLanes) return EqualBytes<I>::of(taps, byte);
    std::uint8_t bytes[V::kLanes] = {};
    std::copy_n(taps, n, bytes);
    return EqualBytes<I>::of(bytes, byte);
  } else {
    decltype(reduce_add(V::zero())) lanes[V::kLanes] = {};
    for (int lane = 0; lane < n; ++lane) lanes[lane] = static_cast<decltype(reduce_add(V::zero()))>(taps[lane]);
    return V::load(lanes) == V::set(static_cast<decltype(reduce_add(V::zero()))>(tap));
  }
}

constexpr int kBlock = 4;  // vectors of channels that share one walk over a window; long pieces are fetched sooner

// Calls f.operator()<kVectors>(c, n) for blocks of channels: kMost whole vectors, kBlock, then single ones of n
// channels.
template <class V, int kMost = kBlock, class F>
DRUPE_INLINE void for_channels(std::int64_t C, F&& f) {
  std::int64_t c = 0;
  if constexpr (kMost > kBlock) {
    for (; c + kMost * V::kLanes <= C; c += kMost * V::kLanes) f.template operator()<kMost>(c, V::kLanes);
  }
  for (; c + kBlock * V::kLanes <= C; c += kBlock * V::kLanes) f.template operator()<kBlock>(c, V::kLanes);
  for (; c < C; c += V::kLanes) {
    f.template operator()<1>(c, static_cast<int>(std::min<std::int64_t>(V::kLanes, C - c)));
  }
}

// The rows and columns of one window, or of the windows of one element; width: of the kernel.
struct Hits {
  const Runs &rows, &cols;
  Run row, col;
  std::int64_t width;

  std::int64_t offset(std::int64_t i, std::int64_t j, std::int64_t line, std::int64_t C) const {
    return (row.at + i * rows.at_step) * line + (col.at + j * cols.at_step) * C;
  }
  std::int64_t tap(std::int64_t i, std::int64_t j) const {
    return (row.tap + i * rows.tap_step) * width + col.tap + j * cols.tap_step;
  }
};

template <Isa I, class S, class Index, bool kKeepTaps, int kVectors>
DRUPE_INLINE void maximum(const S* image, std::int64_t line, std::int64_t C, const Hits& hits, S* y, Index* taps,
                          int n) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  V best[kVectors], tap[kVectors];
  const bool any = hits.row.count > 0 && hits.col.count > 0;
  const V first = V::set(any ? static_cast<T>(hits.tap(0, 0)) : T(0));
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) best[v] = V::set(-std::numeric_limits<T>::infinity()), tap[v] = first;
  for (std::int64_t i = 0; i < hits.row.count; ++i) {
    for (std::int64_t j = 0; j < hits.col.count; ++j) {
      const S* pixel = image + hits.offset(i, j, line, C);
      const V number = V::set(static_cast<T>(hits.tap(i, j)));
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const V value = V::load(pixel + v * V::kLanes, n);
        const auto better = (best[v] < value) | ~(value == value);
        best[v] = select(better, value, best[v]);
        if constexpr (kKeepTaps) tap[v] = select(better, number, tap[v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    best[v].store(y + v * V::kLanes, n);
    if constexpr (kKeepTaps) store_taps(tap[v], taps + v * V::kLanes, n);
  }
}

template <Isa I, class S, class Index, bool kKeepTaps>
void max_rows(const MaxPoolArgs& args) {
  using V = Vec<Accumulator<S>, I>;
  const std::int64_t C = args.C, P = args.h.out, Q = args.w.out;
  constexpr int kMost = kRegisters<I> / (kKeepTaps ? 4 : 2);
  const Runs rows(args.h, Of::windows), cols(args.w, Of::windows);
  parallel_for(args.N * P, [&](std::int64_t row) {
    Hits hits{rows, cols, rows.runs[static_cast<std::size_t>(row % P)], {}, args.w.kernel};
    const std::int64_t line = args.w.in * C;
    const S* image = static_cast<const S*>(args.x) + row / P * args.h.in * line;
    for (std::int64_t q = 0; q < Q; ++q) {
      hits.col = cols.runs[static_cast<std::size_t>(q)];
      S* y = static_cast<S*>(args.out) + (row * Q + q) * C;
      Index* taps = kKeepTaps ? static_cast<Index*>(args.taps) + (row * Q + q) * C : nullptr;
      for_channels<V, kMost>(C, [&]<int kVectors>(std::int64_t c, int n) {
        maximum<I, S, Index, kKeepTaps, kVectors>(image + c, line, C, hits, y + c, kKeepTaps ? taps + c : nullptr, n);
      });
    }
  });
}

template <Isa I, class S, class Index, int kVectors>
DRUPE_INLINE void gather_maxima(const S* dy, const Index* taps, std::int64_t line, std::int64_t C, const Hits& hits,
                                S* dx, int n, bool stream) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  V sum[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum[v] = V::zero();
  for (std::int64_t i = 0; i < hits.row.count; ++i) {
    for (std::int64_t j = 0; j < hits.col.count; ++j) {
      const std::int64_t from = hits.offset(i, j, line, C), tap = hits.tap(i, j);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const std::int64_t at = from + v * V::kLanes;
        const auto equal = equal_taps<I, V>(taps + at, tap, n);
        sum[v] = sum[v] + select(equal, V::load(dy + at, n), V::zero());
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    if constexpr (std::is_same_v<S, T>) {
      if (stream) {
        sum[v].stream(dx + v * V::kLanes);
        continue;
      }
    }
    sum[v].store(dx + v * V::kLanes, n);
  }
}

template <Isa I, class S, class Index>
void max_rows_backward(const MaxPoolArgs& args) {
  using V = Vec<Accumulator<S>, I>;
  const std::int64_t C = args.C, P = args.h.out, Q = args.w.out, H = args.h.in, W = args.w.in;
  const Runs rows(args.h, Of::elements), cols(args.w, Of::elements);
  const bool stream = C % V::kLanes == 0 && passes_caches<S>(args.N * H * W * C);
  parallel_for(args.N * H, [&](std::int64_t row) {
    Hits hits{rows, cols, rows.runs[static_cast<std::size_t>(row % H)], {}, args.w.kernel};
    const S* dy = static_cast<const S*>(args.dy) + row / H * P * Q * C;
    const Index* taps = static_cast<const Index*>(args.taps) + row / H * P * Q * C;
    for (std::int64_t w = 0; w < W; ++w) {
      hits.col = cols.runs[static_cast<std::size_t>(w)];
      S* dx = static_cast<S*>(args.out) + (row * W + w) * C;
      for_channels<V>(C, [&]<int kVectors>(std::int64_t c, int n) {
        gather_maxima<I, S, Index, kVectors>(dy + c, taps + c, Q * C, C, hits, dx + c, n, stream);
      });
    }
    if (stream) stream_fence<I>();
  });
}

// to = scale * sum over [h0, h1) x [w0, w1) of kVectors vectors of an image.
template <Isa I, class S, int kVectors>
DRUPE_INLINE void mean(const S* image, std::int64_t width, std::int64_t C, std::int64_t h0, std::int64_t h1,
                       std::int64_t w0, std::int64_t w1, Accumulator<S> scale, S* to, int n) {
  using V = Vec<Accumulator<S>, I>;
  V sum[kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) sum[v] = V::zero();
  for (std::int64_t h = h0; h < h1; ++h) {
    for (std::int64_t w = w0; w < w1; ++w) {
      const S* pixel = image + (h * width + w) * C;
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sum[v] = sum[v] + V::load(pixel + v * V::kLanes, n);
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) (V::set(scale) * sum[v]).store(to + v * V::kLanes, n);
}

template <Isa I, class S>
void average_rows(const AveragePoolArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const AveragePoolAxis &h = args.h, &w = args.w;
  const std::int64_t C = args.C;
  constexpr int kMost = kRegisters<I> / 2;
  parallel_for(args.N * h.out, [&](std::int64_t row) {
    const std::int64_t p = row % h.out;
    const S* image = static_cast<const S*>(args.from) + row / h.out * h.in * w.in * C;
    S* to = static_cast<S*>(args.to) + row * w.out * C;
    for (std::int64_t q = 0; q < w.out; ++q, to += C) {
      const T scale = T(1) / static_cast<T>(h.count[p] * w.count[q]);
      for_channels<V, kMost>(C, [&]<int kVectors>(std::int64_t c, int n) {
        mean<I, S, kVectors>(image + c, w.in, C, h.begin[p], h.end[p], w.begin[q], w.end[q], scale, to + c, n);
      });
    }
  });
}

template <Isa I, class S>
void average_rows_backward(const AveragePoolArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const AveragePoolAxis &h = args.h, &w = args.w;
  const std::int64_t C = args.C;
  parallel_for(args.N * h.in, [&](std::int64_t row) {
    const std::int64_t i = row % h.in;
    const S* dy = static_cast<const S*>(args.from) + row / h.in * h.out * w.out * C;
    S* to = static_cast<S*>(args.to) + row * w.in * C;
    for (std::int64_t j = 0; j < w.in; ++j, to += C) {
      for_channels<V>(C, [&]<int kVectors>(std::int64_t c, int n) {
        V sum[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[v] = V::zero();
        for (std::int64_t p = h.first[i]; p < h.last[i]; ++p) {
          for (std::int64_t q = w.first[j]; q < w.last[j]; ++q) {
            const V scale = V::set(T(1) / static_cast<T>(h.count[p] * w.count[q]));
            const S* from = dy + (p * w.out + q) * C + c;
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) sum[v] = fma(scale, V::load(from + v * V::kLanes, n), sum[v]);
          }
        }
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[v].store(to + c + v * V::kLanes, n);
      });
    }
  });
}

}  // namespace

template <Isa I>
void max_pool2d(const MaxPoolArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    if (!args.taps) {
      max_rows<I, S, std::uint8_t, false>(args);
    } else if (args.wide_taps) {
      max_rows<I, S, std::int32_t, true>(args);
    } else {
      max_rows<I, S, std::uint8_t, true>(args);
    }
  });
}

template <Isa I>
void max_pool2d_backward(const MaxPoolArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    if (args.wide_taps) {
      max_rows_backward<I, S, std::int32_t>(args);
    } else {
      max_rows_backward<I, S, std::uint8_t>(args);
    }
  });
}

template <Isa I>
void average_pool2d(const AveragePoolArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { average_rows<I, S>(args); });
}

template <Isa I>
void average_pool2d_backward(const AveragePoolArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { average_rows_backward<I, S>(args); });
}

template void max_pool2d<Isa::DRUPE_ISA>(const MaxPoolArgs&);
template void max_pool2d_backward<Isa::DRUPE_ISA>(const MaxPoolArgs&);
template void average_pool2d<Isa::DRUPE_ISA>(const AveragePoolArgs&);
template void average_pool2d_backward<Isa::DRUPE_ISA>(const AveragePoolArgs&);

}  // namespace drupe::cpu
