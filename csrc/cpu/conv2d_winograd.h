// 3 x 3 convolution of stride 1 by minimal filtering, F(4 x 4, 3 x 3) (A. Lavin, S. Gray, "Fast algorithms for
// convolutional neural networks", CVPR 2016): patches of 6 x 6 pixels and the windows are transformed, their products
// summed over the channels at each of 36 points, and the sums transformed into 4 x 4 results: a quarter of the
// multiplications. The polynomials behind the transforms are evaluated at 0, ±3/4, ±3/2 and infinity, which round less
// than the customary ±1 and ±2: 0.6 times the mean error, 0.3 times the largest.
//
// The transformed weight lies in panels of columns, made once. A task owns some patches and some panels: it transforms
// its patches, and, panel by panel, multiplies at all points and turns the sums into results while they are in cache.
// Bytes: the image 2.25 times from the caches, 4 times the weight for each block of patches.
#pragma once

#include "core/parallel.h"
#include "cpu/conv2d_gather.h"

namespace drupe::cpu {

struct Winograd {
  static constexpr int kTaps = 3, kOut = 4, kIn = kOut + kTaps - 1, kPoints = kIn * kIn;

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

  // Where the results of one begin.
  struct Patch {
    std::int64_t image, h, w;
  };
};

// The weight at all points: panels of columns, each point by point, each channel by channel.
template <Isa I, class T>
struct WinogradWeight {
  using V = Vec<T, I>;
  using Tile = GemmTile<I, T>;
  static constexpr int kTaps = Winograd::kTaps, kIn = Winograd::kIn;
  std::int64_t panels, pitch;  // from point to point; more than is used, so that points lie in different cache sets
  Scratch<T> data;

  template <class S>
  WinogradWeight(const Filters<I, S>& filters, std::int64_t columns, std::int64_t channels)
      : panels((columns + Tile::kCols - 1) / Tile::kCols),
        pitch((channels + 1) * Tile::kCols),
        data(static_cast<std::size_t>(panels * Winograd::kPoints * pitch)) {
    constexpr std::int64_t kGrain = 16;
    const std::int64_t blocks = (channels + kGrain - 1) / kGrain;
    parallel_for(panels * blocks, [&](std::int64_t task) {
      const std::int64_t panel = task / blocks, begin = task % blocks * kGrain;
      const std::int64_t count = std::min(channels - begin, kGrain);
      const std::int64_t col0 = panel * Tile::kCols;
      const std::int64_t cols = std::min<std::int64_t>(Tile::kCols, columns - col0);
      T windows[kGrain][kTaps * kTaps][Tile::kCols];
      if (cols < Tile::kCols) zero_run(windows[0][0], kGrain * kTaps * kTaps * Tile::kCols);
      filters.windows(windows[0][0], begin, count, col0, cols);
      for (std::int64_t c = 0; c < count; ++c) {
        for (int j = 0; j < Tile::kCols; j += V::kLanes) {
          Winograd::transform<V, kTaps, kIn, Winograd::Axis<T, I>::window>(
              [&](int r, int s) { return V::load(windows[c][filters.offset(r, s)] + j); },
              [&](int r, int s, V x) { x.store(at(panel, r * kIn + s) + (begin + c) * Tile::kCols + j); });
        }
      }
    });
  }
  T* at(std::int64_t panel, std::int64_t point) const {
    return data.data() + (panel * Winograd::kPoints + point) * pitch;
  }
};

// How a convolution is cut into tasks, by its sizes alone.
template <Isa I, class T>
struct WinogradBlocks {
  using Tile = GemmTile<I, T>;
  std::int64_t down, across, patches;  // of an image, of all
  std::int64_t block, blocks;          // patches of a task, and how many such blocks
  std::int64_t panels, splits;         // panels of a task, and how many such stretches

  WinogradBlocks(const GatherAxis& h, const GatherAxis& w, std::int64_t images, std::int64_t all_panels)
      : down((h.rows + Winograd::kOut - 1) / Winograd::kOut),
        across((w.rows + Winograd::kOut - 1) / Winograd::kOut),
        patches(images * down * across) {
    constexpr std::int64_t kLeastTasks = 16, kMost = 16 / Tile::kRows * Tile::kRows;  // which stay in L2, transformed
    blocks = (patches + kMost - 1) / kMost;
    block = (patches + blocks - 1) / blocks;
    panels = all_panels;
    while (panels * Tile::kCols > 64 && blocks * ((all_panels + panels - 1) / panels) < kLeastTasks) {
      panels = (panels + 1) / 2;
    }
    splits = (all_panels + panels - 1) / panels;
  }
  Winograd::Patch patch(std::int64_t index) const {
    return {index / across / down, index / across % down * Winograd::kOut, index % across * Winograd::kOut};
  }
};

// Multiplies one task's share. kSlice is the number of channels that lie together in a row of a packed panel.
template <int kSlice, Isa I, class S, class Finish>
void winograd_task(const WinogradBlocks<I, Accumulator<S>>& blocks, const Gather<I, S>& gather,
                   const WinogradWeight<I, Accumulator<S>>& weight, std::int64_t columns, std::int64_t task,
                   const Finish& finish) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using Tile = GemmTile<I, T>;
  using Axis = Winograd::Axis<T, I>;
  constexpr int kIn = Winograd::kIn, kOut = Winograd::kOut;
  const std::int64_t first = task % blocks.blocks * blocks.block;
  const std::int64_t count = std::min(blocks.block, blocks.patches - first);
  if (count <= 0) return;
  const std::int64_t C = gather.channels, slices = (C + kSlice - 1) / kSlice;
  const std::int64_t row_panels = (count + Tile::kRows - 1) / Tile::kRows;
  const std::int64_t height = (count + row_panels - 1) / row_panels;

  // Row i of the block at a point and from a slice's first channel on.
  const std::int64_t slice_size = count * kSlice, point_size = slices * slice_size;
  const Scratch<T> packed(static_cast<std::size_t>(Winograd::kPoints * point_size));
  const Scratch<S> zeros(static_cast<std::size_t>(C));
  zero_run(zeros.data(), C);
  for (std::int64_t i = 0; i < count; ++i) {
    const Winograd::Patch patch = blocks.patch(first + i);
    const S* pixels[Winograd::kPoints];
    for (int point = 0; point < Winograd::kPoints; ++point) {
      const std::int64_t h = patch.h + gather.h.base + point / kIn, w = patch.w + gather.w.base + point % kIn;
      const bool inside = h >= 0 && h < gather.h.source && w >= 0 && w < gather.w.source;
      pixels[point] = inside
                          ? gather.source + ((patch.image * gather.h.source + h) * gather.w.source + w) * gather.pitch
                          : zeros.data();
    }
    for (std::int64_t c = 0; c < C; c += V::kLanes) {
      T* to = packed.data() + c / kSlice * slice_size + i * kSlice + c % kSlice;
      const auto store = [&](int r, int s, V x) { x.store(to + (r * kIn + s) * point_size); };
      if (const std::int64_t rest = C - c; rest >= V::kLanes) {
        Winograd::transform<V, kIn, kIn, Axis::image>([&](int r, int s) { return V::load(pixels[r * kIn + s] + c); },
                                                      store);
      } else {
        Winograd::transform<V, kIn, kIn, Axis::image>(
            [&](int r, int s) { return V::load(pixels[r * kIn + s] + c, static_cast<int>(rest)); }, store);
      }
    }
  }

  const Scratch<T> sums(static_cast<std::size_t>(Winograd::kPoints * count * Tile::kCols));
  const std::int64_t panel0 = task / blocks.blocks * blocks.panels;
  for (std::int64_t panel = panel0; panel < std::min(weight.panels, panel0 + blocks.panels); ++panel) {
    for (std::int64_t point = 0; point < Winograd::kPoints; ++point) {
      const T* right = weight.at(panel, point);
      for (std::int64_t row = 0; row < count; row += height) {
        const int rows = static_cast<int>(std::min(height, count - row));
        T* tile = sums.data() + (point * count + row) * Tile::kCols;
        for (std::int64_t slice = 0; slice < slices; ++slice) {
          const std::int64_t c = slice * kSlice;
          gemm_tile<I, T, kSlice, Product>(rows, std::min<std::int64_t>(kSlice, C - c),
                                           packed.data() + point * point_size + slice * slice_size + row * kSlice,
                                           right + c * Tile::kCols, tile, Tile::kCols, slice > 0);
        }
      }
    }
    const std::int64_t col0 = panel * Tile::kCols;
    const std::int64_t cols = std::min<std::int64_t>(Tile::kCols, columns - col0);
    for (std::int64_t i = 0; i < count; ++i) {
      T results[kOut][kOut][Tile::kCols];
      for (int j = 0; j < Tile::kCols; j += V::kLanes) {
        const T* from = sums.data() + i * Tile::kCols + j;
        Winograd::transform<V, kIn, kOut, Axis::result>(
            [&](int r, int s) { return V::load(from + (r * kIn + s) * count * Tile::kCols); },
            [&](int r, int s, V x) { x.store(results[r][s] + j); });
      }
      const Winograd::Patch patch = blocks.patch(first + i);
      const std::int64_t wide = std::min<std::int64_t>(kOut, gather.w.rows - patch.w);
      for (std::int64_t r = 0; r < std::min<std::int64_t>(kOut, gather.h.rows - patch.h); ++r) {
        finish((patch.image * gather.h.rows + patch.h + r) * gather.w.rows + patch.w, col0, wide, cols, results[r][0],
               Tile::kCols);
      }
    }
  }
}

// Whether these axes are those of a 3 x 3 window that moves by one, forward or backward.
inline bool winograd_fits(const GatherAxis& h, const GatherAxis& w) {
  const auto fits = [](const GatherAxis& axis) {
    return axis.taps == Winograd::kTaps && axis.step == 1 && axis.spread == 1 && axis.out_step == 1;
  };
  return fits(h) && fits(w);
}

// Whether the transforms, and the larger weight, cost less than they save: not of few channels, few patches, or patches
// that are mostly beyond the image; nor one number at a time.
template <Isa I, class T>
bool winograd_pays(const GatherAxis& h, const GatherAxis& w, std::int64_t images, std::int64_t channels) {
  constexpr std::int64_t kLeast = 8;
  const std::int64_t patches = WinogradBlocks<I, T>(h, w, images, 1).patches;
  const std::int64_t used = images * h.rows * w.rows;
  return I != Isa::scalar && channels >= kLeast && patches >= kLeast &&
         patches * Winograd::kOut * Winograd::kOut <= 3 * used;
}

// The rows of the gather times the weight. `finish` is as gemm_core's; what it is given lies in no matrix.
template <Isa I, class S, class Finish>
void winograd(const Gather<I, S>& gather, const Filters<I, S>& filters, std::int64_t images, std::int64_t columns,
              const Finish& finish) {
  using T = Accumulator<S>;
  const WinogradWeight<I, T> weight(filters, columns, gather.channels);
  const WinogradBlocks<I, T> blocks(gather.h, gather.w, images, weight.panels);
  parallel_for(blocks.blocks * blocks.splits, [&](std::int64_t task) {
    if (gather.channels <= 64) {
      winograd_task<64>(blocks, gather, weight, columns, task, finish);
    } else {
      winograd_task<128>(blocks, gather, weight, columns, task, finish);
    }
  });
}

}  // namespace drupe::cpu
