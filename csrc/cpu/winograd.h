// Minimal filtering, F(4 x 4, 3 x 3) and F(2 x 2, 3 x 3) (A. Lavin, S. Gray, "Fast algorithms for convolutional neural
// networks", CVPR 2016): patches of 6 x 6 or 4 x 4 pixels and 3 x 3 windows are transformed, their products summed over
// the channels at each of 36 or 16 points, and the sums transformed into 4 x 4 or 2 x 2 results: 1/4 or 4/9 of the
// multiplications. The window's gradient is the same backward: the gradients of the results are transformed, their
// products with the patches summed over the patches, and the sums transformed into windows.
#pragma once

#include "cpu/conv2d_gather.h"
#include "cpu/gemm_bf16.h"
#include "cpu/lanes.h"

namespace drupe::cpu {

// One dimension of the transforms for kOut results. The polynomials behind those for four are evaluated at 0, ±3/4,
// ±3/2 and infinity, which round less than the customary ±1 and ±2: 0.6 times the mean error, 0.3 times the largest.
template <class T, Isa I, int kOut>
struct WinogradAxis {
  using V = Vec<T, I>;
  static constexpr int kTaps = 3, kIn = 6;
  static_assert(kOut == 4);
  static constexpr double kA = 0.75, kB = 1.5, kA2 = kA * kA, kB2 = kB * kB;  // the points are 0, ±a, ±b, infinity
  static constexpr double kAtA = 0.5 / (kA2 * (kA2 - kB2)), kAtB = 0.5 / (kB2 * (kB2 - kA2));

  DRUPE_INLINE static V times(double factor, V x) { return V::set(static_cast<T>(factor)) * x; }
  DRUPE_INLINE static V add(V sum, double factor, V x) { return fma(V::set(static_cast<T>(factor)), x, sum); }

  DRUPE_INLINE static void image(const V (&x)[kIn], V (&y)[kIn]) {
    const V even_a = add(x[4], -kB2, x[2]), odd_a = add(x[3], -kB2, x[1]);
    const V even_b = add(x[4], -kA2, x[2]), odd_b = add(x[3], -kA2, x[1]);
    y[0] = add(add(x[4], -(kA2 + kB2), x[2]), kA2 * kB2, x[0]);
    y[1] = add(even_a, kA, odd_a);
    y[2] = add(even_a, -kA, odd_a);
    y[3] = add(even_b, kB, odd_b);
    y[4] = add(even_b, -kB, odd_b);
    y[5] = add(add(x[5], -(kA2 + kB2), x[3]), kA2 * kB2, x[1]);
  }

  DRUPE_INLINE static void window(const V (&x)[kTaps], V (&y)[kIn]) {
    const V even_a = add(times(kAtA, x[0]), kAtA * kA2, x[2]), even_b = add(times(kAtB, x[0]), kAtB * kB2, x[2]);
    y[0] = times(1 / (kA2 * kB2), x[0]);
    y[1] = add(even_a, kAtA * kA, x[1]);
    y[2] = add(even_a, -kAtA * kA, x[1]);
    y[3] = add(even_b, kAtB * kB, x[1]);
    y[4] = add(even_b, -kAtB * kB, x[1]);
    y[5] = x[2];
  }

  DRUPE_INLINE static void result(const V (&x)[kIn], V (&y)[kOut]) {
    const V even_a = x[1] + x[2], odd_a = x[1] - x[2], even_b = x[3] + x[4], odd_b = x[3] - x[4];
    y[0] = x[0] + (even_a + even_b);
    y[1] = add(times(kA, odd_a), kB, odd_b);
    y[2] = add(times(kA2, even_a), kB2, even_b);
    y[3] = add(add(x[5], kA2 * kA, odd_a), kB2 * kB, odd_b);
  }

  // The transposes of `result` and `window`.
  DRUPE_INLINE static void result_gradient(const V (&x)[kOut], V (&y)[kIn]) {
    const V even_a = add(x[0], kA2, x[2]), odd_a = add(x[1], kA2, x[3]);
    const V even_b = add(x[0], kB2, x[2]), odd_b = add(x[1], kB2, x[3]);
    y[0] = x[0];
    y[1] = add(even_a, kA, odd_a);
    y[2] = add(even_a, -kA, odd_a);
    y[3] = add(even_b, kB, odd_b);
    y[4] = add(even_b, -kB, odd_b);
    y[5] = x[3];
  }
  DRUPE_INLINE static void window_gradient(const V (&x)[kIn], V (&y)[kTaps]) {
    const V even_a = times(kAtA, x[1] + x[2]), odd_a = times(kAtA, x[1] - x[2]);
    const V even_b = times(kAtB, x[3] + x[4]), odd_b = times(kAtB, x[3] - x[4]);
    y[0] = add(even_a + even_b, 1 / (kA2 * kB2), x[0]);
    y[1] = add(times(kA, odd_a), kB, odd_b);
    y[2] = add(add(x[5], kA2, even_a), kB2, even_b);
  }
};

// At 0, ±1 and infinity.
template <class T, Isa I>
struct WinogradAxis<T, I, 2> {
  using V = Vec<T, I>;
  static constexpr int kTaps = 3, kIn = 4, kOut = 2;

  DRUPE_INLINE static void image(const V (&x)[kIn], V (&y)[kIn]) {
    y[0] = x[0] - x[2];
    y[1] = x[1] + x[2];
    y[2] = x[2] - x[1];
    y[3] = x[3] - x[1];
  }

  DRUPE_INLINE static void window(const V (&x)[kTaps], V (&y)[kIn]) {
    const V half = V::set(T(0.5)), even = half * (x[0] + x[2]), odd = half * x[1];
    y[0] = x[0];
    y[1] = even + odd;
    y[2] = even - odd;
    y[3] = x[2];
  }

  DRUPE_INLINE static void result(const V (&x)[kIn], V (&y)[kOut]) {
    y[0] = x[0] + (x[1] + x[2]);
    y[1] = (x[1] - x[2]) + x[3];
  }
};

template <int kResults>
struct Winograd {
  static constexpr int kTaps = 3, kOut = kResults, kIn = kOut + kTaps - 1, kPoints = kIn * kIn;
  template <class T, Isa I>
  using Axis = WinogradAxis<T, I, kOut>;

  // Both dimensions: load(i, j) gives the element of row i and column j, store(i, j, x) takes that of the result.
  template <class V, int kFrom, int kTo, void (*kAxis)(const V (&)[kFrom], V (&)[kTo]), class Load, class Store>
  DRUPE_INLINE static void transform(const Load& load, const Store& store) {
    V half[kTo][kFrom], from[kFrom], to[kTo];
#pragma GCC unroll 8
    for (int j = 0; j < kFrom; ++j) {
#pragma GCC unroll 8
      for (int i = 0; i < kFrom; ++i) from[i] = load(i, j);
      kAxis(from, to);
#pragma GCC unroll 8
      for (int i = 0; i < kTo; ++i) half[i][j] = to[i];
    }
#pragma GCC unroll 8
    for (int i = 0; i < kTo; ++i) {
      kAxis(half[i], to);
#pragma GCC unroll 8
      for (int j = 0; j < kTo; ++j) store(i, j, to[j]);
    }
  }
};

// Where the results of a patch begin.
struct WinogradPatch {
  std::int64_t image, h, w;
};

// The patches that cover all results, image by image, row by row.
template <int kOut>
struct WinogradPatches {
  std::int64_t down, across, count;

  DRUPE_INLINE WinogradPatches(const GatherAxis& h, const GatherAxis& w, std::int64_t images)
      : down(along(h)), across(along(w)), count(images * down * across) {}

  DRUPE_INLINE WinogradPatch operator[](std::int64_t patch) const {
    return {patch / across / down, patch / across % down * kOut, patch % across * kOut};
  }
  DRUPE_INLINE static std::int64_t along(const GatherAxis& axis) { return (axis.rows + kOut - 1) / kOut; }
};

// Where the pixels of a square lie; `zeros`, a pixel of zeros, is at those outside of the image.
template <class S, int kSide>
struct WinogradPixels {
  const S* at[kSide][kSide];

  // The image is height x width; of it, only [0, seen_h) x [0, seen_w) counts.
  DRUPE_INLINE WinogradPixels(const S* image, std::int64_t height, std::int64_t width, std::int64_t seen_h,
                              std::int64_t seen_w, std::int64_t pitch, WinogradPatch corner, const S* zeros) {
    for (int i = 0; i < kSide; ++i) {
      for (int j = 0; j < kSide; ++j) {
        const std::int64_t h = corner.h + i, w = corner.w + j;
        const bool inside = h >= 0 && h < seen_h && w >= 0 && w < seen_w;
        at[i][j] = inside ? image + ((corner.image * height + h) * width + w) * pitch : zeros;
      }
    }
  }
};

// The pixels behind a patch of results. What no window sees counts as outside.
template <class W, Isa I, class S>
WinogradPixels<S, W::kIn> winograd_inputs(const Gather<I, S>& gather, WinogradPatch patch, const S* zeros) {
  const auto seen = [](const GatherAxis& axis) { return std::min(axis.source, axis.rows + axis.base + W::kTaps - 1); };
  const WinogradPatch corner{patch.image, patch.h + gather.h.base, patch.w + gather.w.base};
  return {gather.source, gather.h.source, gather.w.source, seen(gather.h), seen(gather.w), gather.pitch, corner, zeros};
}

// The scheme for products P: those of pairs take transformed numbers rounded to bfloat16, an error that F(4 x 4) would
// make many times that of a result.
template <class P>
using WinogradBy = Winograd<kMultipliesPairs<P> ? 2 : 4>;

// Elements of the transformed images that hold so many channels.
template <class P>
DRUPE_INLINE std::int64_t winograd_depth(std::int64_t channels) {
  return kMultipliesPairs<P> ? (channels + 1) / 2 : channels;
}

// Transforms the pixels behind a patch for products P. The elements, a channel or a pair of them each, lie in slices,
// whole registers: element c at a point goes to to[point * pitch + c / slice * next_slice + c % slice].
template <Isa I, class P, class S>
[[gnu::noinline]] void transform_input(const Gather<I, S>& gather, WinogradPatch patch, const S* zeros,
                                       Accumulator<S>* to, std::int64_t slice, std::int64_t next_slice,
                                       std::int64_t pitch) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using W = WinogradBy<P>;
  constexpr int kIn = W::kIn;
  const auto pixels = winograd_inputs<W>(gather, patch, zeros);
  const auto transform = [&](std::int64_t c, auto lanes, const auto& store) {
    W::template transform<V, kIn, kIn, W::template Axis<T, I>::image>(
        [&](int r, int s) { return load<V>(pixels.at[r][s] + c, lanes); }, store);
  };
  const std::int64_t channels = gather.channels;
  if constexpr (kMultipliesPairs<P>) {
    const auto both = [&](std::int64_t c, auto lanes, auto lanes_after) {
      T* row = to + c / 2 / slice * next_slice + c / 2 % slice;
      V low[kIn][kIn];
      transform(c, lanes, [&](int r, int s, V x) { low[r][s] = x; });
      transform(c + V::kLanes, lanes_after,
                [&](int r, int s, V x) { P::pair(low[r][s], x).store(row + (r * kIn + s) * pitch); });
    };
    std::int64_t c = 0;
    for (; c + 2 * V::kLanes <= channels; c += 2 * V::kLanes) both(c, AllLanes{}, AllLanes{});
    const auto left = static_cast<int>(channels - c);
    if (left > 0) both(c, FirstLanes{left}, FirstLanes{left - V::kLanes});
  } else {
    for_vectors<I, T>(channels, [&](std::int64_t c, auto lanes) {
      T* row = to + c / slice * next_slice + c % slice;
      transform(c, lanes, [&](int r, int s, V x) { x.store(row + (r * kIn + s) * pitch); });
    });
  }
}

// Whether minimal filtering is asked for, or can be expected to cost less than it saves, for a window on these axes:
// not of few or very many channels, fewer than 8 patches and `more`, or patches that are mostly beyond the image; nor
// one number at a time.
template <Isa I, class S, class W>
bool by_winograd(const Conv2dArgs& args, const GatherAxis& h, const GatherAxis& w, std::int64_t channels,
                 std::int64_t more = 0) {
  constexpr std::int64_t kLeastChannels = 8, kMostChannels = 4096, kLeastPatches = 8;
  const auto fits = [](const GatherAxis& axis) {
    return axis.taps == W::kTaps && axis.step == 1 && axis.spread == 1 && axis.out_step == 1;
  };
  const bool possible = args.groups == 1 && args.N > 0 && channels > 0 && fits(h) && fits(w);
  if (args.algorithm == Conv2dAlgorithm::direct || !possible) return false;
  if (args.algorithm == Conv2dAlgorithm::winograd) return true;
  const WinogradPatches<W::kOut> patches(h, w, args.N);
  return I != Isa::scalar && !std::is_same_v<S, double> && channels >= kLeastChannels && channels <= kMostChannels &&
         patches.count >= kLeastPatches + more && patches.count * W::kOut * W::kOut <= 3 * args.N * h.rows * w.rows;
}

}  // namespace drupe::cpu
