// 3 x 3 convolution of stride 1 by minimal filtering. Panels of the weight's columns are transformed, as many at a time
// as stay in cache. A task owns a block of patches and some of these panels: it transforms its patches, unless other
// tasks need them too, and, panel by panel, multiplies at all points and turns the sums into results while they are in
// cache. Bytes from the caches: the image 2.25 times by F(4 x 4), 4 times by F(2 x 2), and for each of the blocks 4 or
// 16/9 times the weight.
#pragma once

#include "core/parallel.h"
#include "cpu/winograd.h"

namespace drupe::cpu {

// The transformed weight of some columns: panel by panel, each point by point, each channel by channel, or pair by pair
// of channels.
template <Isa I, class P, class T>
struct WinogradWeight {
  using V = Vec<T, I>;
  using Tile = GemmTile<I, T>;
  using W = WinogradBy<P>;
  static constexpr int kTaps = W::kTaps, kIn = W::kIn;
  static constexpr std::int64_t kWide = kMultipliesPairs<P> ? 2 : 1;  // channels of an element
  std::int64_t columns, channels, panels;
  std::int64_t pitch;  // from point to point: more than is used, so that points lie in different cache sets
  const T* data = nullptr;

  WinogradWeight(std::int64_t columns, std::int64_t channels)
      : columns(columns),
        channels(channels),
        panels((columns + Tile::kCols - 1) / Tile::kCols),
        pitch((winograd_depth<P>(channels) + 1) * Tile::kCols) {}
  std::int64_t panel_size() const { return W::kPoints * pitch; }
  std::int64_t size() const { return panels * panel_size(); }
  const T* at(std::int64_t panel) const { return data + panel * panel_size(); }

  // Transforms columns column0 … of the filters.
  template <class S>
  void fill(T* to_panels, const Filters<I, S>& filters, std::int64_t column0) {
    data = to_panels;
    constexpr std::int64_t kGrain = 16;
    const std::int64_t stretches = (channels + kGrain - 1) / kGrain;
    parallel_for(panels * stretches, [&](std::int64_t task) {
      const std::int64_t panel = task / stretches, begin = task % stretches * kGrain;
      const std::int64_t count = std::min(channels - begin, kGrain);
      const std::int64_t cols = std::min<std::int64_t>(Tile::kCols, columns - panel * Tile::kCols);
      T windows[kGrain][kTaps * kTaps][Tile::kCols];
      if (cols < Tile::kCols || count < kGrain) zero_run(windows[0][0], kGrain * kTaps * kTaps * Tile::kCols);
      filters.windows(windows[0][0], begin, count, column0 + panel * Tile::kCols, cols);
      const auto transform = [&](std::int64_t c, int j, const auto& store) {
        W::template transform<V, kTaps, kIn, W::template Axis<T, I>::window>(
            [&](int r, int s) { return V::load(windows[c][filters.offset(r, s)] + j); }, store);
      };
      for (std::int64_t c = 0; c < count; c += kWide) {
        for (int j = 0; j < Tile::kCols; j += V::kLanes) {
          T* to = to_panels + panel * panel_size() + (begin + c) / kWide * Tile::kCols + j;
          if constexpr (kWide == 2) {
            BFloat16 pair[2][W::kPoints][V::kLanes];
            for (int odd = 0; odd < 2; ++odd) {
              transform(c + odd, j, [&](int r, int s, V x) { x.store(pair[odd][r * kIn + s]); });
            }
            for (int point = 0; point < W::kPoints; ++point) {
              V::load_pairs(pair[0][point], pair[1][point]).store(to + point * pitch);
            }
          } else {
            transform(c, j, [&](int r, int s, V x) { x.store(to + (r * kIn + s) * pitch); });
          }
        }
      }
    });
  }
};

// The patches in blocks, each of which is transformed as a whole: points far apart, at each of them slices of elements
// one after another, in a slice patch by patch.
template <Isa I, class P, class S>
struct WinogradBlocks {
  using T = Accumulator<S>;
  using W = WinogradBy<P>;
  static constexpr int kRows = GemmTile<I, T>::kRows;
  static constexpr std::int64_t kSlice = 128;  // elements that lie together in a row of transformed patches

  const Gather<I, S>& gather;
  const S* zeros;  // a pixel outside of the image
  WinogradPatches<W::kOut> patches;
  std::int64_t depth, slices, count, most;  // elements, their slices; blocks, and patches in all of them but the last

  WinogradBlocks(const Gather<I, S>& gather, std::int64_t images, const S* zeros)
      : gather(gather),
        zeros(zeros),
        patches(gather.h, gather.w, images),
        depth(winograd_depth<P>(gather.channels)),
        slices((depth + kSlice - 1) / kSlice) {
    constexpr std::int64_t kMostPatches = 576 / W::kPoints / kRows * kRows;
    count = (patches.count + kMostPatches - 1) / kMostPatches;
    most = (patches.count + count - 1) / count;
  }
  std::int64_t height(std::int64_t block) const { return std::min(most, patches.count - block * most); }
  // From point to point: a row of padding keeps points in different cache sets.
  std::int64_t point_size(std::int64_t height) const {
    return slices * height * kSlice + static_cast<std::int64_t>(64 / sizeof(T));
  }
  std::int64_t size() const { return W::kPoints * point_size(most); }

  // Transforms patch i of a block into the block's array.
  void transform(std::int64_t block, std::int64_t i, T* to) const {
    const std::int64_t rows = height(block);
    transform_input<I, P>(gather, patches[block * most + i], zeros, to + i * kSlice, kSlice, rows * kSlice,
                          point_size(rows));
  }
};

// The product of the gathered rows and one group of columns, cut into tasks by the sizes alone.
template <Isa I, class P, class S>
struct WinogradProduct {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using Tile = GemmTile<I, T>;
  using W = WinogradBy<P>;
  using Blocks = WinogradBlocks<I, P, S>;
  static constexpr int kIn = W::kIn, kOut = W::kOut, kPoints = W::kPoints;
  static constexpr std::int64_t kSlice = Blocks::kSlice;
  static constexpr std::int64_t kLeastTasks = 8;
  static constexpr std::int64_t kStrip = 16 / kOut;  // patches beside each other whose results are finished together

  const Blocks& blocks;
  const WinogradWeight<I, P, T>& weight;
  const T* transformed;  // all blocks, or null: then each task transforms its own
  std::int64_t tasks_across, panels_per_task;

  WinogradProduct(const Blocks& blocks, const WinogradWeight<I, P, T>& weight, const T* transformed)
      : blocks(blocks), weight(weight), transformed(transformed), panels_per_task(weight.panels) {
    constexpr std::int64_t kLeastColumns = 32;
    const auto count_across = [&] { return (weight.panels + panels_per_task - 1) / panels_per_task; };
    while (panels_per_task * Tile::kCols > kLeastColumns && blocks.count * count_across() < kLeastTasks) {
      panels_per_task = (panels_per_task + 1) / 2;
    }
    tasks_across = count_across();
  }

  template <class Finish>
  void run(std::int64_t task, const Finish& finish) const {
    const std::int64_t block = task % blocks.count, count = blocks.height(block);
    const std::int64_t panel0 = task / blocks.count * panels_per_task;
    const std::int64_t panels = std::min(panels_per_task, weight.panels - panel0);
    if (count <= 0 || panels <= 0) return;
    const Scratch<T> own(transformed ? 0 : static_cast<std::size_t>(blocks.size()));
    const Scratch<T> sums(static_cast<std::size_t>(kPoints * count * Tile::kCols));
    for (std::int64_t i = 0; i < count && !transformed; ++i) blocks.transform(block, i, own.data());
    const T* packed = transformed ? transformed + block * blocks.size() : own.data();
    for (std::int64_t panel = panel0; panel < panel0 + panels; ++panel) {
      multiply(packed, weight.at(panel), count, sums.data());
      for (std::int64_t i = 0; i < count;) {
        const std::int64_t patch = block * blocks.most + i;
        const std::int64_t beside =
            std::min({kStrip, count - i, blocks.patches.across - patch % blocks.patches.across});
        write_results(patch, beside, panel * Tile::kCols, sums.data() + i * Tile::kCols, count, finish);
        i += beside;
      }
    }
    stream_fence<I>();
  }

 private:
  // sums[point][i] = the products of patch i and one panel. Meanwhile what follows in the panel is fetched.
  void multiply(const T* packed, const T* panel, std::int64_t count, T* sums) const {
    const std::int64_t parts = (count + Tile::kRows - 1) / Tile::kRows, height = (count + parts - 1) / parts;
    const std::int64_t share = (Tile::kCols + parts - 1) / parts;
    for (int point = 0; point < kPoints; ++point) {
      for (std::int64_t slice = 0; slice < blocks.slices; ++slice) {
        const std::int64_t c = slice * kSlice, depth = std::min(kSlice, blocks.depth - c);
        const T* right = panel + point * weight.pitch + c * Tile::kCols;
        const T* next = right + depth * Tile::kCols;
        for (std::int64_t row = 0; row < count; row += height, next += depth * share) {
          const int rows = static_cast<int>(std::min(height, count - row));
          Fetch fetch;
          fetch.add_rest(next, share);
          gemm_tile<I, T, 1, P>(rows, depth, packed + point * blocks.point_size(count) + (slice * count + row) * kSlice,
                                kSlice, right, sums + (point * count + row) * Tile::kCols, Tile::kCols, slice > 0,
                                fetch);
        }
      }
    }
  }

  // Of some patches beside each other, of the `count` whose sums there are.
  template <class Finish>
  void write_results(std::int64_t patch, std::int64_t beside, std::int64_t col0, const T* sums, std::int64_t count,
                     const Finish& finish) const {
    T results[kOut][kStrip * kOut][Tile::kCols];
    for (std::int64_t i = 0; i < beside; ++i, sums += Tile::kCols) {
      for (int j = 0; j < Tile::kCols; j += V::kLanes) {
        W::template transform<V, kIn, kOut, W::template Axis<T, I>::result>(
            [&](int r, int s) { return V::load(sums + (r * kIn + s) * count * Tile::kCols + j); },
            [&](int r, int s, V x) { x.store(results[r][i * kOut + s] + j); });
      }
    }
    const WinogradPatch at = blocks.patches[patch];
    const GatherAxis &h = blocks.gather.h, &w = blocks.gather.w;
    const std::int64_t high = std::min<std::int64_t>(kOut, h.rows - at.h);
    const std::int64_t wide = std::min<std::int64_t>(beside * kOut, w.rows - at.w);
    const std::int64_t cols = std::min<std::int64_t>(Tile::kCols, weight.columns - col0);
    for (std::int64_t r = 0; r < high; ++r) {
      finish((at.image * h.rows + at.h + r) * w.rows + at.w, col0, wide, cols, results[r][0], Tile::kCols);
    }
  }
};

// The rows of the gather times the weight, by products P; the weight may be `kept` transformed. `finish` is as
// gemm_rows'; the tile that it is given lies outside of C.
template <Isa I, class P, class S, class Finish>
void winograd(const Gather<I, S>& gather, const Filters<I, S>& filters, std::int64_t images, std::int64_t columns,
              const Accumulator<S>* kept, const Finish& finish) {
  using T = Accumulator<S>;
  constexpr std::int64_t kMostBytes = std::int64_t{10} << 20, kCols = GemmTile<I, T>::kCols;  // of the weight
  const WinogradWeight<I, P, T> all(columns, gather.channels);
  const std::int64_t most =
      std::max<std::int64_t>(2, kMostBytes / (all.panel_size() * static_cast<std::int64_t>(sizeof(T))));
  const std::int64_t groups = (all.panels + most - 1) / most, group = (all.panels + groups - 1) / groups * kCols;
  const Scratch<S> zeros(static_cast<std::size_t>(gather.channels));
  zero_run(zeros.data(), gather.channels);
  // Few patches and many columns: several tasks need a patch, which had better be transformed once.
  constexpr std::int64_t kMostShared = std::int64_t{8} << 20;  // bytes of patches
  const WinogradBlocks<I, P, S> blocks(gather, images, zeros.data());
  const std::int64_t patches_size = blocks.count * blocks.size();
  const bool share = (groups > 1 || (all.panels > 1 && blocks.count < WinogradProduct<I, P, S>::kLeastTasks)) &&
                     patches_size * static_cast<std::int64_t>(sizeof(T)) <= kMostShared;
  const Scratch<T> shared(share ? static_cast<std::size_t>(patches_size) : 0);
  parallel_for(share ? blocks.patches.count : 0, [&](std::int64_t patch) {
    const std::int64_t block = patch / blocks.most;
    blocks.transform(block, patch % blocks.most, shared.data() + block * blocks.size());
  });
  for (std::int64_t col0 = 0; col0 < columns; col0 += group) {
    WinogradWeight<I, P, T> weight(std::min(group, columns - col0), gather.channels);
    const Scratch<T> own(kept ? 0 : static_cast<std::size_t>(weight.size()));
    if (kept) {
      weight.data = kept + col0 / kCols * weight.panel_size();
    } else {
      weight.fill(own.data(), filters, col0);
    }
    const WinogradProduct<I, P, S> product(blocks, weight, share ? shared.data() : nullptr);
    parallel_for(blocks.count * product.tasks_across, [&](std::int64_t task) {
      product.run(task, [&](std::int64_t row, std::int64_t col, auto... tile) { finish(row, col0 + col, tile...); });
    });
  }
}

}  // namespace drupe::cpu
