// Minimal filtering, F(4 x 4, 3 x 3) (A. Lavin, S. Gray, "Fast algorithms for convolutional neural networks", CVPR
// 2016): patches of 6 x 6 pixels and 3 x 3 windows are transformed, their products summed over the channels at each of
// 36 points, and the sums transformed into 4 x 4 results: a quarter of the multiplications. The window's gradient is
// the same backward: the gradients of the results are transformed, their products with the patches summed over the
// patches, and the sums transformed into windows. The polynomials behind the transforms are evaluated at 0, ±3/4, ±3/2
// and infinity, which round less than the customary ±1 and ±2: 0.6 times the mean error, 0.3 times the largest.
#pragma once

#include "cpu/conv2d_gather.h"
#include "cpu/lanes.h"

namespace drupe::cpu {

struct Winograd {
  static constexpr int kTaps = 3, kOut = 4, kIn = kOut + kTaps - 1, kPoints = kIn * kIn;

  // One dimension of the transforms.
  template <class T, Isa I>
  struct Axis {
    using V = Vec<T, I>;
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
struct WinogradPatches {
  std::int64_t down, across, count;

  DRUPE_INLINE WinogradPatches(const GatherAxis& h, const GatherAxis& w, std::int64_t images)
      : down(along(h)), across(along(w)), count(images * down * across) {}

  DRUPE_INLINE WinogradPatch operator[](std::int64_t patch) const {
    return {patch / across / down, patch / across % down * Winograd::kOut, patch % across * Winograd::kOut};
  }
  DRUPE_INLINE static std::int64_t along(const GatherAxis& axis) {
    return (axis.rows + Winograd::kOut - 1) / Winograd::kOut;
  }
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

// The 6 x 6 pixels behind a patch of results. What no window sees counts as outside.
template <Isa I, class S>
WinogradPixels<S, Winograd::kIn> winograd_inputs(const Gather<I, S>& gather, WinogradPatch patch, const S* zeros) {
  const auto seen = [](const GatherAxis& axis) {
    return std::min(axis.source, axis.rows + axis.base + Winograd::kTaps - 1);
  };
  const WinogradPatch corner{patch.image, patch.h + gather.h.base, patch.w + gather.w.base};
  return {gather.source, gather.h.source, gather.w.source, seen(gather.h), seen(gather.w), gather.pitch, corner, zeros};
}

// Transforms the pixels behind a patch: channel c at a point goes to to[point * pitch + c / kSlice * next_slice +
// c % kSlice], so that kSlice channels lie together.
template <Isa I, int kSlice, class S>
void transform_input(const Gather<I, S>& gather, WinogradPatch patch, const S* zeros, Accumulator<S>* to,
                     std::int64_t next_slice, std::int64_t pitch) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  constexpr int kIn = Winograd::kIn;
  const auto pixels = winograd_inputs(gather, patch, zeros);
  for_vectors<I, T>(gather.channels, [&](std::int64_t c, auto lanes) {
    T* row = to + c / kSlice * next_slice + c % kSlice;
    Winograd::transform<V, kIn, kIn, Winograd::Axis<T, I>::image>(
        [&](int r, int s) { return load<V>(pixels.at[r][s] + c, lanes); },
        [&](int r, int s, V x) { x.store(row + (r * kIn + s) * pitch); });
  });
}

// Whether minimal filtering is asked for, or can be expected to cost less than it saves, for a window on these axes:
// not of few or very many channels, fewer than 8 patches and `more`, or patches that are mostly beyond the image; nor
// one number at a time.
template <Isa I, class S>
bool by_winograd(const Conv2dArgs& args, const GatherAxis& h, const GatherAxis& w, std::int64_t channels,
                 std::int64_t more = 0) {
  constexpr std::int64_t kLeastChannels = 8, kMostChannels = 4096, kLeastPatches = 8;
  const auto fits = [](const GatherAxis& axis) {
    return axis.taps == Winograd::kTaps && axis.step == 1 && axis.spread == 1 && axis.out_step == 1;
  };
  const bool possible = args.groups == 1 && args.N > 0 && channels > 0 && fits(h) && fits(w);
  if (args.algorithm == Conv2dAlgorithm::direct || !possible) return false;
  if (args.algorithm == Conv2dAlgorithm::winograd) return true;
  const WinogradPatches patches(h, w, args.N);
  return I != Isa::scalar && !std::is_same_v<S, double> && channels >= kLeastChannels && channels <= kMostChannels &&
         patches.count >= kLeastPatches + more &&
         patches.count * Winograd::kOut * Winograd::kOut <= 3 * args.N * h.rows * w.rows;
}

}  // namespace drupe::cpu
