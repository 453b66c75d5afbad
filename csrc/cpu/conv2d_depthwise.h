// Convolution of each channel by itself (groups = C = K): vectors across channels, no matrix product.
#pragma once

#include "cpu/conv2d_gather.h"
#include "cpu/lanes.h"

namespace drupe::cpu {

// The taps of row `at` (its first tap's position) that fall into the source: [first, last).
struct TapRange {
  std::int64_t first, last;
};
DRUPE_INLINE TapRange taps_inside(const GatherAxis& axis, std::int64_t at) {
  TapRange range{0, axis.taps};
  while (range.first < range.last && at + range.first * axis.spread < 0) ++range.first;
  while (range.first < range.last && at + (range.last - 1) * axis.spread >= axis.source) --range.last;
  return range;
}

// kPixels neighbouring outputs of one image row, all with the taps s; `image` is at the first output's first tap.
template <Isa I, class S, int kPixels>
void depthwise_pixels(const Gather<I, S>& gather, const S* image, const Accumulator<S>* weight, TapRange r, TapRange s,
                      Accumulator<S>* out) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const std::int64_t C = gather.channels;
  const std::int64_t next_pixel = gather.w.step * C;
  for_vectors<I, T>(C, [&](std::int64_t c, auto lanes) {
    V sum[kPixels];
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; ++p) sum[p] = V::zero();
    for (std::int64_t tap_h = r.first; tap_h < r.last; ++tap_h) {
      const S* line = image + tap_h * gather.h.spread * gather.w.source * C + c;
      const T* filter = weight + tap_h * gather.w.taps * C + c;
      for (std::int64_t tap_w = s.first; tap_w < s.last; ++tap_w) {
        const V f = load<V>(filter + tap_w * C, lanes);
        const S* x = line + tap_w * gather.w.spread * C;
#pragma GCC unroll 4
        for (int p = 0; p < kPixels; ++p) sum[p] = fma(load<V>(x + p * next_pixel, lanes), f, sum[p]);
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; ++p) store(sum[p], out + p * C + c, lanes);
  });
}

// weight[tap][c] in the gather's order of taps; finish(row0, rows, out) takes each finished image row. `c`, if given,
// is where the rows lie; scratch otherwise.
template <Isa I, class S, class Finish>
void depthwise(const Gather<I, S>& gather, std::int64_t images, const Accumulator<S>* weight, const Finish& finish,
               Accumulator<S>* out) {
  using T = Accumulator<S>;
  constexpr int kPixels = 4;
  const GatherAxis &h = gather.h, &w = gather.w;
  const std::int64_t C = gather.channels;
  parallel_for(images * h.rows, [&](std::int64_t task) {
    const std::int64_t image = task / h.rows;
    const std::int64_t at_h = task % h.rows * h.step + h.base;
    const TapRange r = taps_inside(h, at_h);
    const Scratch<T> scratch(out ? 0 : static_cast<std::size_t>(w.rows * C));
    T* row = out ? out + task * w.rows * C : scratch.data();
    const std::int64_t line = (image * h.source + at_h) * w.source;
    for (std::int64_t j = 0; j < w.rows;) {
      const std::int64_t at_w = j * w.step + w.base;
      const TapRange s = taps_inside(w, at_w);
      const TapRange ahead = taps_inside(w, at_w + (kPixels - 1) * w.step);
      // Only in range through the taps that are used: an offset, not yet a pointer into the image.
      const S* x = gather.source + (line + at_w) * C;
      const bool whole = s.first == 0 && ahead.last == w.taps && ahead.first == 0 && s.last == w.taps;
      if (whole && j + kPixels <= w.rows) {
        depthwise_pixels<I, S, kPixels>(gather, x, weight, r, s, row + j * C);
        j += kPixels;
      } else {
        depthwise_pixels<I, S, 1>(gather, x, weight, r, s, row + j * C);
        ++j;
      }
    }
    finish(task * w.rows, w.rows, row);
    stream_fence<I>();
  });
}

}  // namespace drupe::cpu
