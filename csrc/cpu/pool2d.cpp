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

template <Isa I, class S, class Index, bool kKeepTaps>
void max_rows(const MaxPoolArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const std::int64_t C = args.C, P = args.h.out, Q = args.w.out;
  const auto* x = static_cast<const S*>(args.x);
  parallel_for(args.N * P, [&](std::int64_t row) {
    const Scratch<Hit> rows(static_cast<std::size_t>(std::min(args.h.kernel, args.h.in)));
    const Scratch<Hit> cols(static_cast<std::size_t>(std::min(args.w.kernel, args.w.in)));
    const std::int64_t row_count = hits_of_window(args.h, row % P, rows.data());
    const S* image = x + row / P * args.h.in * args.w.in * C;
    for (std::int64_t q = 0; q < Q; ++q) {
      const std::int64_t col_count = hits_of_window(args.w, q, cols.data());
      const std::int64_t to = (row * Q + q) * C;
      for (std::int64_t c = 0; c < C; c += V::kLanes) {
        const int n = static_cast<int>(std::min<std::int64_t>(V::kLanes, C - c));
        V best = V::set(-std::numeric_limits<T>::infinity());
        V tap = V::zero();
        if (kKeepTaps && row_count > 0 && col_count > 0) {
          tap = V::set(static_cast<T>(rows[0].tap * args.w.kernel + cols[0].tap));
        }
        for (std::int64_t i = 0; i < row_count; ++i) {
          const S* line = image + rows.data()[i].at * args.w.in * C + c;
          for (std::int64_t j = 0; j < col_count; ++j) {
            const V value = V::load(line + cols.data()[j].at * C, n);
            const auto better = (best < value) | ~(value == value);
            best = select(better, value, best);
            if constexpr (kKeepTaps) {
              const auto number = rows.data()[i].tap * args.w.kernel + cols.data()[j].tap;
              tap = select(better, V::set(static_cast<T>(number)), tap);
            }
          }
        }
        best.store(static_cast<S*>(args.out) + to + c, n);
        if constexpr (kKeepTaps) {
          T lanes[V::kLanes];
          tap.store(lanes);
          Index* taps = static_cast<Index*>(args.taps) + to + c;
          if (n == V::kLanes) {
            for (int lane = 0; lane < V::kLanes; ++lane) taps[lane] = static_cast<Index>(lanes[lane]);
          } else {
            for (int lane = 0; lane < n; ++lane) taps[lane] = static_cast<Index>(lanes[lane]);
          }
        }
      }
    }
  });
}

template <Isa I, class S, class Index>
void max_rows_backward(const MaxPoolArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const std::int64_t C = args.C, P = args.h.out, Q = args.w.out, H = args.h.in, W = args.w.in;
  parallel_for(args.N * H, [&](std::int64_t row) {
    const Scratch<Hit> rows(static_cast<std::size_t>(std::min(args.h.kernel, P)));
    const Scratch<Hit> cols(static_cast<std::size_t>(std::min(args.w.kernel, Q)));
    const std::int64_t row_count = hits_of_element(args.h, row % H, rows.data());
    const S* dy = static_cast<const S*>(args.dy) + row / H * P * Q * C;
    const Index* taps = static_cast<const Index*>(args.taps) + row / H * P * Q * C;
    S* dx = static_cast<S*>(args.out) + row * W * C;
    for (std::int64_t w = 0; w < W; ++w) {
      const std::int64_t col_count = hits_of_element(args.w, w, cols.data());
      for (std::int64_t c = 0; c < C; c += V::kLanes) {
        const int n = static_cast<int>(std::min<std::int64_t>(V::kLanes, C - c));
        V sum = V::zero();
        for (std::int64_t i = 0; i < row_count; ++i) {
          for (std::int64_t j = 0; j < col_count; ++j) {
            const std::int64_t from = (rows.data()[i].at * Q + cols.data()[j].at) * C + c;
            const auto tap = static_cast<T>(rows.data()[i].tap * args.w.kernel + cols.data()[j].tap);
            T lanes[V::kLanes] = {};
            if (n == V::kLanes) {
              for (int lane = 0; lane < V::kLanes; ++lane) lanes[lane] = static_cast<T>(taps[from + lane]);
            } else {
              for (int lane = 0; lane < n; ++lane) lanes[lane] = static_cast<T>(taps[from + lane]);
            }
            sum = sum + select(V::load(lanes) == V::set(tap), V::load(dy + from, n), V::zero());
          }
        }
        sum.store(dx + w * C + c, n);
      }
    }
  });
}

// to = scale * sum over [h0, h1) x [w0, w1) of kVectors vectors of an image.
template <Isa I, class S, int kVectors>
DRUPE_INLINE void mean(const S* image, std::int64_t width, std::int64_t C, std::int64_t h0, std::int64_t h1,
                       std::int64_t w0, std::int64_t w1, Accumulator<S> scale, S* to, int n) {
  using V = Vec<Accumulator<S>, I>;
  V sum[kVectors];
  for (V& v : sum) v = V::zero();
  for (std::int64_t h = h0; h < h1; ++h) {
    for (std::int64_t w = w0; w < w1; ++w) {
      const S* pixel = image + (h * width + w) * C;
      for (int v = 0; v < kVectors; ++v) sum[v] = sum[v] + V::load(pixel + v * V::kLanes, n);
    }
  }
  for (int v = 0; v < kVectors; ++v) (V::set(scale) * sum[v]).store(to + v * V::kLanes, n);
}

template <Isa I, class S>
void average_rows(const AveragePoolArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  constexpr int kVectors = 4;
  const AveragePoolAxis &h = args.h, &w = args.w;
  const std::int64_t C = args.C;
  parallel_for(args.N * h.out, [&](std::int64_t row) {
    const std::int64_t p = row % h.out;
    const S* image = static_cast<const S*>(args.from) + row / h.out * h.in * w.in * C;
    S* to = static_cast<S*>(args.to) + row * w.out * C;
    for (std::int64_t q = 0; q < w.out; ++q, to += C) {
      const T scale = T(1) / static_cast<T>(h.count[p] * w.count[q]);
      std::int64_t c = 0;
      for (; c + kVectors * V::kLanes <= C; c += kVectors * V::kLanes) {
        mean<I, S, kVectors>(image + c, w.in, C, h.begin[p], h.end[p], w.begin[q], w.end[q], scale, to + c, V::kLanes);
      }
      for (; c < C; c += V::kLanes) {
        const int n = static_cast<int>(std::min<std::int64_t>(V::kLanes, C - c));
        mean<I, S, 1>(image + c, w.in, C, h.begin[p], h.end[p], w.begin[q], w.end[q], scale, to + c, n);
      }
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
      for (std::int64_t c = 0; c < C; c += V::kLanes) {
        const int n = static_cast<int>(std::min<std::int64_t>(V::kLanes, C - c));
        V sum = V::zero();
        for (std::int64_t p = h.first[i]; p < h.last[i]; ++p) {
          for (std::int64_t q = w.first[j]; q < w.last[j]; ++q) {
            const V scale = V::set(T(1) / static_cast<T>(h.count[p] * w.count[q]));
            sum = fma(scale, V::load(dy + (p * w.out + q) * C + c, n), sum);
          }
        }
        sum.store(to + c, n);
      }
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
