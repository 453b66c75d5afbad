// Pooling on NHWC: vectors across channels, one task per image row of the result. The gradients gather: each input
// element looks at the windows that hold it, so that rows are independent and no element is written twice.
// Bytes: the image once from memory (windows overlap in the caches), the result once.
#include "ops/pool2d.h"

#include <algorithm>
#include <limits>

#include "core/dispatch.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/simd.h"

namespace drupe::cpu {
namespace {

// A window's position along one dimension: which input it reads at which tap, or which output holds an input.
struct Hit {
  std::int64_t at, tap;
};

// The elements of window i inside the image.
DRUPE_INLINE std::int64_t hits_of_window(const WindowAxis& axis, std::int64_t i, Hit* hits) {
  std::int64_t count = 0;
  for (std::int64_t r = 0; r < axis.kernel; ++r) {
    const std::int64_t at = i * axis.stride - axis.before + r * axis.dilation;
    if (at >= axis.in) break;
    if (at >= 0) hits[count++] = {at, r};
  }
  return count;
}

// The windows that hold element i.
DRUPE_INLINE std::int64_t hits_of_element(const WindowAxis& axis, std::int64_t i, Hit* hits) {
  const std::int64_t padded = i + axis.before;
  const std::int64_t reach = padded - axis.dilation * (axis.kernel - 1);
  std::int64_t count = 0;
  std::int64_t p = reach <= 0 ? 0 : (reach + axis.stride - 1) / axis.stride;
  for (; p < axis.out && p * axis.stride <= padded; ++p) {
    const std::int64_t distance = padded - p * axis.stride;
    if (distance % axis.dilation == 0) hits[count++] = {p, distance / axis.dilation};
  }
  return count;
}

// Numbers of taps as vectors of the accumulator type.
template <class V, class Index>
DRUPE_INLINE V load_taps(const Index* from, int n) {
  if constexpr (std::is_same_v<Index, std::uint8_t> && std::is_same_v<decltype(reduce_add(V::zero())), float>) {
    return V::load(from, n);
  } else {
    decltype(reduce_add(V::zero())) lanes[V::kLanes] = {};
    for (int lane = 0; lane < n; ++lane) lanes[lane] = static_cast<decltype(reduce_add(V::zero()))>(from[lane]);
    return V::load(lanes);
  }
}
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

constexpr int kBlock = 4;  // vectors of channels that share one walk over a window

// Calls f.operator()<kVectors>(c, n) for blocks of channels: kBlock whole vectors, then single ones of n channels.
template <class V, class F>
DRUPE_INLINE void for_channels(std::int64_t C, F&& f) {
  std::int64_t c = 0;
  for (; c + kBlock * V::kLanes <= C; c += kBlock * V::kLanes) f.template operator()<kBlock>(c, V::kLanes);
  for (; c < C; c += V::kLanes) {
    f.template operator()<1>(c, static_cast<int>(std::min<std::int64_t>(V::kLanes, C - c)));
  }
}

// The rows and columns of one window, or of the windows of one element.
struct Hits {
  const Hit *rows, *cols;
  std::int64_t row_count, col_count, width;  // width: of the kernel
};

template <Isa I, class S, class Index, bool kKeepTaps, int kVectors>
DRUPE_INLINE void maximum(const S* image, std::int64_t line, std::int64_t C, const Hits& hits, S* y, Index* taps,
                          int n) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  V best[kVectors], tap[kVectors];
  const bool any = hits.row_count > 0 && hits.col_count > 0;
  const V first = V::set(any ? static_cast<T>(hits.rows[0].tap * hits.width + hits.cols[0].tap) : T(0));
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) best[v] = V::set(-std::numeric_limits<T>::infinity()), tap[v] = first;
  for (std::int64_t i = 0; i < hits.row_count; ++i) {
    for (std::int64_t j = 0; j < hits.col_count; ++j) {
      const S* pixel = image + hits.rows[i].at * line + hits.cols[j].at * C;
      const V number = V::set(static_cast<T>(hits.rows[i].tap * hits.width + hits.cols[j].tap));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const V value = V::load(pixel + v * V::kLanes, n);
        const auto better = (best[v] < value) | ~(value == value);
        best[v] = select(better, value, best[v]);
        if constexpr (kKeepTaps) tap[v] = select(better, number, tap[v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    best[v].store(y + v * V::kLanes, n);
    if constexpr (kKeepTaps) store_taps(tap[v], taps + v * V::kLanes, n);
  }
}

template <Isa I, class S, class Index, bool kKeepTaps>
void max_rows(const MaxPoolArgs& args) {
  using V = Vec<Accumulator<S>, I>;
  const std::int64_t C = args.C, P = args.h.out, Q = args.w.out;
  parallel_for(args.N * P, [&](std::int64_t row) {
    const Scratch<Hit> rows(static_cast<std::size_t>(std::min(args.h.kernel, args.h.in)));
    const Scratch<Hit> cols(static_cast<std::size_t>(std::min(args.w.kernel, args.w.in)));
    Hits hits{rows.data(), cols.data(), hits_of_window(args.h, row % P, rows.data()), 0, args.w.kernel};
    const std::int64_t line = args.w.in * C;
    const S* image = static_cast<const S*>(args.x) + row / P * args.h.in * line;
    for (std::int64_t q = 0; q < Q; ++q) {
      hits.col_count = hits_of_window(args.w, q, cols.data());
      S* y = static_cast<S*>(args.out) + (row * Q + q) * C;
      Index* taps = kKeepTaps ? static_cast<Index*>(args.taps) + (row * Q + q) * C : nullptr;
      for_channels<V>(C, [&]<int kVectors>(std::int64_t c, int n) {
        maximum<I, S, Index, kKeepTaps, kVectors>(image + c, line, C, hits, y + c, kKeepTaps ? taps + c : nullptr, n);
      });
    }
  });
}

template <Isa I, class S, class Index, int kVectors>
DRUPE_INLINE void gather_maxima(const S* dy, const Index* taps, std::int64_t line, std::int64_t C, const Hits& hits,
                                S* dx, int n) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  V sum[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum[v] = V::zero();
  for (std::int64_t i = 0; i < hits.row_count; ++i) {
    for (std::int64_t j = 0; j < hits.col_count; ++j) {
      const std::int64_t from = hits.rows[i].at * line + hits.cols[j].at * C;
      const V number = V::set(static_cast<T>(hits.rows[i].tap * hits.width + hits.cols[j].tap));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const V tap = load_taps<V>(taps + from + v * V::kLanes, n);
        sum[v] = sum[v] + select(tap == number, V::load(dy + from + v * V::kLanes, n), V::zero());
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum[v].store(dx + v * V::kLanes, n);
}

template <Isa I, class S, class Index>
void max_rows_backward(const MaxPoolArgs& args) {
  using V = Vec<Accumulator<S>, I>;
  const std::int64_t C = args.C, P = args.h.out, Q = args.w.out, H = args.h.in, W = args.w.in;
  parallel_for(args.N * H, [&](std::int64_t row) {
    const Scratch<Hit> rows(static_cast<std::size_t>(std::min(args.h.kernel, P)));
    const Scratch<Hit> cols(static_cast<std::size_t>(std::min(args.w.kernel, Q)));
    Hits hits{rows.data(), cols.data(), hits_of_element(args.h, row % H, rows.data()), 0, args.w.kernel};
    const S* dy = static_cast<const S*>(args.dy) + row / H * P * Q * C;
    const Index* taps = static_cast<const Index*>(args.taps) + row / H * P * Q * C;
    for (std::int64_t w = 0; w < W; ++w) {
      hits.col_count = hits_of_element(args.w, w, cols.data());
      S* dx = static_cast<S*>(args.out) + (row * W + w) * C;
      for_channels<V>(C, [&]<int kVectors>(std::int64_t c, int n) {
        gather_maxima<I, S, Index, kVectors>(dy + c, taps + c, Q * C, C, hits, dx + c, n);
      });
    }
  });
}

// to = scale * sum over [h0, h1) x [w0, w1) of kVectors vectors of an image.
template <Isa I, class S, int kVectors>
DRUPE_INLINE void mean(const S* image, std::int64_t width, std::int64_t C, std::int64_t h0, std::int64_t h1,
                       std::int64_t w0, std::int64_t w1, Accumulator<S> scale, S* to, int n) {
  using V = Vec<Accumulator<S>, I>;
  V sum[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum[v] = V::zero();
  for (std::int64_t h = h0; h < h1; ++h) {
    for (std::int64_t w = w0; w < w1; ++w) {
      const S* pixel = image + (h * width + w) * C;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[v] = sum[v] + V::load(pixel + v * V::kLanes, n);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) (V::set(scale) * sum[v]).store(to + v * V::kLanes, n);
}

template <Isa I, class S>
void average_rows(const AveragePoolArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const AveragePoolAxis &h = args.h, &w = args.w;
  const std::int64_t C = args.C;
  parallel_for(args.N * h.out, [&](std::int64_t row) {
    const std::int64_t p = row % h.out;
    const S* image = static_cast<const S*>(args.from) + row / h.out * h.in * w.in * C;
    S* to = static_cast<S*>(args.to) + row * w.out * C;
    for (std::int64_t q = 0; q < w.out; ++q, to += C) {
      const T scale = T(1) / static_cast<T>(h.count[p] * w.count[q]);
      for_channels<V>(C, [&]<int kVectors>(std::int64_t c, int n) {
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
