// 3 x 3 convolution of stride 1 by minimal filtering, F(4 x 4, 3 x 3) (A. Lavin, S. Gray, "Fast algorithms for
// convolutional neural networks", CVPR 2016): patches of 6 x 6 pixels and the windows are transformed, their products
// summed over the channels at each of 36 points, and the sums transformed into 4 x 4 results: a quarter of the
// multiplications. The polynomials behind the transforms are evaluated at 0, ±3/4, ±3/2 and infinity, which round less
// than the customary ±1 and ±2: 0.6 times the mean error, 0.3 times the largest.
//
// Panels of the weight's columns are transformed, as many at a time as stay in cache. A task owns some patches and some
// of these panels: it transforms its patches, and, panel by panel, multiplies at all points and turns the sums into
// results while they are in cache. Bytes from the caches: the image 2.25 times for each of its tasks across, and for
// each of the tasks down 4 times the weight.
#pragma once

#include "core/parallel.h"
#include "cpu/conv2d_gather.h"
#include "cpu/lanes.h"

namespace drupe::cpu {

struct Winograd {
  static constexpr int kTaps = 3, kOut = 4, kIn = kOut + kTaps - 1, kPoints = kIn * kIn;

  DRUPE_INLINE static std::int64_t patches(const GatherAxis& axis) { return (axis.rows + kOut - 1) / kOut; }

  // One dimension of the transforms.
  template <class T, Isa I>
  struct Axis {
    using V = Vec<T, I>;
    static constexpr double kA = 0.75, kB = 1.5, kA2 = kA * kA, kB2 = kB * kB;  // the points are 0, ±a, ±b, infinity

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
      constexpr double kAtA = 0.5 / (kA2 * (kA2 - kB2)), kAtB = 0.5 / (kB2 * (kB2 - kA2));
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

// The transformed weight of some columns: panel by panel, each point by point, each channel by channel.
template <Isa I, class T>
struct WinogradWeight {
  using V = Vec<T, I>;
  using Tile = GemmTile<I, T>;
  static constexpr int kTaps = Winograd::kTaps, kIn = Winograd::kIn;
  std::int64_t columns, panels;
  std::int64_t pitch;  // from point to point: more than is used, so that points lie in different cache sets
  Scratch<T> data;

  static std::int64_t panel_size(std::int64_t channels) { return Winograd::kPoints * (channels + 1) * Tile::kCols; }

  template <class S>
  WinogradWeight(const Filters<I, S>& filters, std::int64_t column0, std::int64_t columns, std::int64_t channels)
      : columns(columns),
        panels((columns + Tile::kCols - 1) / Tile::kCols),
        pitch((channels + 1) * Tile::kCols),
        data(static_cast<std::size_t>(panels * panel_size(channels))) {
    constexpr std::int64_t kGrain = 16;
    const std::int64_t stretches = (channels + kGrain - 1) / kGrain;
    parallel_for(panels * stretches, [&](std::int64_t task) {
      const std::int64_t panel = task / stretches, begin = task % stretches * kGrain;
      const std::int64_t count = std::min(channels - begin, kGrain);
      const std::int64_t cols = std::min<std::int64_t>(Tile::kCols, columns - panel * Tile::kCols);
      T windows[kGrain][kTaps * kTaps][Tile::kCols];
      if (cols < Tile::kCols) zero_run(windows[0][0], kGrain * kTaps * kTaps * Tile::kCols);
      filters.windows(windows[0][0], begin, count, column0 + panel * Tile::kCols, cols);
      for (std::int64_t c = 0; c < count; ++c) {
        for (int j = 0; j < Tile::kCols; j += V::kLanes) {
          T* to = at(panel) + (begin + c) * Tile::kCols + j;
          Winograd::transform<V, kTaps, kIn, Winograd::Axis<T, I>::window>(
              [&](int r, int s) { return V::load(windows[c][filters.offset(r, s)] + j); },
              [&](int r, int s, V x) { x.store(to + (r * kIn + s) * pitch); });
        }
      }
    });
  }
  T* at(std::int64_t panel) const { return data.data() + panel * Winograd::kPoints * pitch; }
};

// The product of the gathered rows and one group of columns, cut into tasks by the sizes alone.
template <Isa I, class S>
struct WinogradProduct {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using Tile = GemmTile<I, T>;
  using Axis = Winograd::Axis<T, I>;
  static constexpr int kIn = Winograd::kIn, kOut = Winograd::kOut, kPoints = Winograd::kPoints;
  static constexpr std::int64_t kSlice = 128;  // channels that lie together in a row of transformed patches

  const Gather<I, S>& gather;
  const WinogradWeight<I, T>& weight;
  const S* zeros;  // a pixel outside of the image
  std::int64_t down, across, patches;
  std::int64_t slices = (gather.channels + kSlice - 1) / kSlice;
  std::int64_t tasks_down, tasks_across, patches_per_task, panels_per_task;

  WinogradProduct(const Gather<I, S>& gather, std::int64_t images, const WinogradWeight<I, T>& weight, const S* zeros)
      : gather(gather),
        weight(weight),
        zeros(zeros),
        down(Winograd::patches(gather.h)),
        across(Winograd::patches(gather.w)),
        patches(images * down * across),
        panels_per_task(weight.panels) {
    constexpr std::int64_t kLeastTasks = 8, kLeastColumns = 32, kMostPatches = 16 / Tile::kRows * Tile::kRows;
    tasks_down = (patches + kMostPatches - 1) / kMostPatches;
    patches_per_task = (patches + tasks_down - 1) / tasks_down;
    const auto count_across = [&] { return (weight.panels + panels_per_task - 1) / panels_per_task; };
    while (panels_per_task * Tile::kCols > kLeastColumns && tasks_down * count_across() < kLeastTasks) {
      panels_per_task = (panels_per_task + 1) / 2;
    }
    tasks_across = count_across();
  }

  template <class Finish>
  void run(std::int64_t task, const Finish& finish) const {
    const std::int64_t first = task % tasks_down * patches_per_task;
    const std::int64_t count = std::min(patches_per_task, patches - first);
    const std::int64_t panel0 = task / tasks_down * panels_per_task;
    const std::int64_t panels = std::min(panels_per_task, weight.panels - panel0);
    if (count <= 0 || panels <= 0) return;
    const Scratch<T> packed(static_cast<std::size_t>(kPoints * point_size(count)));
    const Scratch<T> sums(static_cast<std::size_t>(kPoints * count * Tile::kCols));
    for (std::int64_t i = 0; i < count; ++i) transform_patch(first + i, packed.data() + i * kSlice, count);
    for (std::int64_t panel = panel0; panel < panel0 + panels; ++panel) {
      multiply(packed.data(), weight.at(panel), count, sums.data());
      for (std::int64_t i = 0; i < count; ++i) {
        write_results(first + i, panel * Tile::kCols, sums.data() + i * Tile::kCols, count, finish);
      }
    }
  }

 private:
  // From point to point of `count` transformed patches; slices of kSlice channels follow one another, and a row of
  // padding keeps points in different cache sets.
  std::int64_t point_size(std::int64_t count) const {
    return slices * count * kSlice + static_cast<std::int64_t>(64 / sizeof(T));
  }

  // Where the results of a patch begin.
  struct Position {
    std::int64_t image, h, w;
  };
  Position locate(std::int64_t patch) const {
    return {patch / across / down, patch / across % down * kOut, patch % across * kOut};
  }

  // Transforms one patch; `to` is its row at the first point.
  void transform_patch(std::int64_t patch, T* to, std::int64_t count) const {
    const Position at = locate(patch);
    // What no window sees counts as outside.
    const auto inside = [](const GatherAxis& axis, std::int64_t i) {
      return i >= 0 && i < std::min(axis.source, axis.rows + axis.base + Winograd::kTaps - 1);
    };
    const S* pixels[kPoints];
    for (int point = 0; point < kPoints; ++point) {
      const std::int64_t h = at.h + gather.h.base + point / kIn, w = at.w + gather.w.base + point % kIn;
      const std::int64_t pixel = (at.image * gather.h.source + h) * gather.w.source + w;
      pixels[point] = inside(gather.h, h) && inside(gather.w, w) ? gather.source + pixel * gather.pitch : zeros;
    }
    for_vectors<I, T>(gather.channels, [&](std::int64_t c, auto lanes) {
      T* row = to + c / kSlice * count * kSlice + c % kSlice;
      Winograd::transform<V, kIn, kIn, Axis::image>(
          [&](int r, int s) { return load<V>(pixels[r * kIn + s] + c, lanes); },
          [&](int r, int s, V x) { x.store(row + (r * kIn + s) * point_size(count)); });
    });
  }

  // sums[point][i] = the products of patch i and one panel.
  void multiply(const T* packed, const T* panel, std::int64_t count, T* sums) const {
    const std::int64_t parts = (count + Tile::kRows - 1) / Tile::kRows, height = (count + parts - 1) / parts;
    for (int point = 0; point < kPoints; ++point) {
      for (std::int64_t row = 0; row < count; row += height) {
        const int rows = static_cast<int>(std::min(height, count - row));
        for (std::int64_t slice = 0; slice < slices; ++slice) {
          const std::int64_t c = slice * kSlice;
          gemm_tile<I, T, kSlice, Product>(rows, std::min(kSlice, gather.channels - c),
                                           packed + point * point_size(count) + (slice * count + row) * kSlice,
                                           panel + point * weight.pitch + c * Tile::kCols,
                                           sums + (point * count + row) * Tile::kCols, Tile::kCols, slice > 0);
        }
      }
    }
  }

  template <class Finish>
  void write_results(std::int64_t patch, std::int64_t col0, const T* sums, std::int64_t count,
                     const Finish& finish) const {
    T results[kOut][kOut][Tile::kCols];
    for (int j = 0; j < Tile::kCols; j += V::kLanes) {
      Winograd::transform<V, kIn, kOut, Axis::result>(
          [&](int r, int s) { return V::load(sums + (r * kIn + s) * count * Tile::kCols + j); },
          [&](int r, int s, V x) { x.store(results[r][s] + j); });
    }
    const Position at = locate(patch);
    const std::int64_t high = std::min<std::int64_t>(kOut, gather.h.rows - at.h);
    const std::int64_t wide = std::min<std::int64_t>(kOut, gather.w.rows - at.w);
    const std::int64_t cols = std::min<std::int64_t>(Tile::kCols, weight.columns - col0);
    for (std::int64_t r = 0; r < high; ++r) {
      finish((at.image * gather.h.rows + at.h + r) * gather.w.rows + at.w, col0, wide, cols, results[r][0],
             Tile::kCols);
    }
  }
};

// Whether these axes are those of a 3 x 3 window that moves by one, forward or backward.
DRUPE_INLINE bool winograd_fits(const GatherAxis& h, const GatherAxis& w) {
  const auto fits = [](const GatherAxis& axis) {
    return axis.taps == Winograd::kTaps && axis.step == 1 && axis.spread == 1 && axis.out_step == 1;
  };
  return fits(h) && fits(w);
}

// Whether the transforms, and the larger weight, can be expected to cost less than they save: not of few or very many
// channels, few patches, or patches that are mostly beyond the image; nor one number at a time.
template <Isa I>
bool winograd_pays(const GatherAxis& h, const GatherAxis& w, std::int64_t images, std::int64_t channels) {
  constexpr std::int64_t kLeast = 8, kMostChannels = 4096;
  const std::int64_t patches = images * Winograd::patches(h) * Winograd::patches(w);
  return I != Isa::scalar && channels >= kLeast && channels <= kMostChannels && patches >= kLeast &&
         patches * Winograd::kOut * Winograd::kOut <= 3 * images * h.rows * w.rows;
}

// The rows of the gather times the weight. `finish` is as gemm_core's; the tile that it is given lies outside of C.
template <Isa I, class S, class Finish>
void winograd(const Gather<I, S>& gather, const Filters<I, S>& filters, std::int64_t images, std::int64_t columns,
              const Finish& finish) {
  using T = Accumulator<S>;
  using Weight = WinogradWeight<I, T>;
  constexpr std::int64_t kMostBytes = std::int64_t{10} << 20, kCols = GemmTile<I, T>::kCols;  // of the weight
  const std::int64_t panel_bytes = Weight::panel_size(gather.channels) * static_cast<std::int64_t>(sizeof(T));
  const std::int64_t panels = (columns + kCols - 1) / kCols, most = std::max<std::int64_t>(2, kMostBytes / panel_bytes);
  const std::int64_t groups = (panels + most - 1) / most, group = (panels + groups - 1) / groups * kCols;
  const Scratch<S> zeros(static_cast<std::size_t>(gather.channels));
  zero_run(zeros.data(), gather.channels);
  for (std::int64_t col0 = 0; col0 < columns; col0 += group) {
    const Weight weight(filters, col0, std::min(group, columns - col0), gather.channels);
    const WinogradProduct<I, S> product(gather, images, weight, zeros.data());
    parallel_for(product.tasks_down * product.tasks_across, [&](std::int64_t task) {
      product.run(task, [&](std::int64_t row, std::int64_t col, auto... tile) { finish(row, col0 + col, tile...); });
    });
  }
}

}  // namespace drupe::cpu
