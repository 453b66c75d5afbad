// The gradient of a 3 x 3 weight by minimal filtering: group by group of patches, the image and dy are transformed and
// multiplied at each of 36 points, a matrix product over the patches of a group that adds to the sums of the groups
// before; at the end the sums become windows. Bytes from the caches: the image and dy 2.25 times written and read, and
// 4 times the weight for each group.
#pragma once

#include "core/parallel.h"
#include "cpu/winograd.h"

namespace drupe::cpu {

template <Isa I, class S>
class WinogradWeightGradient {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using Tile = GemmTile<I, T>;
  using W = WinogradBy<Product>;
  using Axis = W::Axis<T, I>;
  static constexpr int kTaps = W::kTaps, kIn = W::kIn, kOut = W::kOut, kPoints = W::kPoints;
  static constexpr int kSlice = 64;  // channels that lie together in a row of transformed patches

 public:
  WinogradWeightGradient(const Gather<I, S>& gather, const S* dy, std::int64_t images, std::int64_t columns)
      : gather_(gather),
        dy_(dy),
        columns_(columns),
        patches_(gather.h, gather.w, images),
        zeros_(static_cast<std::size_t>(std::max(gather.channels, columns))),
        group_(group_size()),
        inputs_(static_cast<std::size_t>(kPoints * inputs_pitch())),
        gradients_(static_cast<std::size_t>(kPoints * gradients_pitch())),
        sums_(static_cast<std::size_t>(kPoints * gather.channels * padded_columns())) {
    zero_run(zeros_.data(), std::max(gather.channels, columns));
  }

  void run(S* dw) const {
    constexpr std::int64_t kGrain = 4;  // patches of a task
    for (std::int64_t first = 0; first < patches_.count; first += group_) {
      const std::int64_t count = std::min(group_, patches_.count - first);
      parallel_ranges(count, kGrain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          transform_input<I, Product>(gather_, patches_[first + i], zeros_.data(), inputs_.data() + i * kSlice, kSlice,
                                      group_ * kSlice, inputs_pitch());
          transform_gradient(patches_[first + i], i);
        }
      });
      parallel_for(kPoints * slices_,
                   [&](std::int64_t task) { multiply(task / slices_, task % slices_, count, first > 0); });
    }
    const std::int64_t stretches = (gather_.channels + kStretch - 1) / kStretch;
    parallel_for(stretches * panels_,
                 [&](std::int64_t task) { write_windows(task % stretches * kStretch, task / stretches, dw); });
  }

 private:
  static constexpr std::int64_t kStretch = 16;  // channels whose windows are written together

  std::int64_t padded_columns() const { return panels_ * Tile::kCols; }

  // As many patches as can be transformed and multiplied in cache, in groups of one size.
  std::int64_t group_size() const {
    constexpr std::int64_t kBytes = std::int64_t{8} << 20;
    const std::int64_t patch = kPoints * (slices_ * kSlice + padded_columns()) * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t most = std::max<std::int64_t>(32, kBytes / patch);
    const std::int64_t groups = (patches_.count + most - 1) / most;
    return (patches_.count + groups - 1) / groups;
  }
  // From point to point: more than is used, so that points lie in different cache sets.
  std::int64_t inputs_pitch() const { return group_ * slices_ * kSlice + Tile::kPadding; }
  std::int64_t gradients_pitch() const { return group_ * padded_columns() + Tile::kPadding; }

  // Panel by panel of columns, padded with zeros, the i-th patch of the group is row i.
  void transform_gradient(WinogradPatch patch, std::int64_t i) const {
    const std::int64_t P = gather_.h.rows, Q = gather_.w.rows;
    const WinogradPixels<S, kOut> pixels(dy_, P, Q, P, Q, columns_, patch, zeros_.data());
    const auto transform = [&](std::int64_t k, auto lanes) {
      T* to = gradients_.data() + (k / Tile::kCols * group_ + i) * Tile::kCols + k % Tile::kCols;
      W::transform<V, kOut, kIn, Axis::result_gradient>(
          [&](int r, int s) { return load<V>(pixels.at[r][s] + k, lanes); },
          [&](int r, int s, V x) { x.store(to + (r * kIn + s) * gradients_pitch()); });
    };
    for_vectors<I, T>(columns_, transform);
    const std::int64_t filled = (columns_ + V::kLanes - 1) / V::kLanes * V::kLanes;
    for (std::int64_t k = filled; k < padded_columns(); k += V::kLanes) {
      T* to = gradients_.data() + (k / Tile::kCols * group_ + i) * Tile::kCols + k % Tile::kCols;
      for (int point = 0; point < kPoints; ++point) V::zero().store(to + point * gradients_pitch());
    }
  }

  // sums[point][channel][column] (+)= the sum over the group's patches, for a slice of channels. Each group is summed
  // from zero, which rounds less than one long chain.
  void multiply(std::int64_t point, std::int64_t slice, std::int64_t count, bool accumulate) const {
    const std::int64_t c0 = slice * kSlice, channels = std::min<std::int64_t>(kSlice, gather_.channels - c0);
    const std::int64_t parts = (channels + Tile::kRows - 1) / Tile::kRows, height = (channels + parts - 1) / parts;
    const std::int64_t share = (Tile::kCols + parts - 1) / parts;  // of the next panel, for a tile to fetch
    const T* left = inputs_.data() + point * inputs_pitch() + slice * group_ * kSlice;
    T* sums = sums_.data() + (point * gather_.channels + c0) * padded_columns();
    T tile[Tile::kRows][Tile::kCols];
    for (std::int64_t panel = 0; panel < panels_; ++panel) {
      const T* right = gradients_.data() + point * gradients_pitch() + panel * group_ * Tile::kCols;
      for (std::int64_t c = 0; c < channels; c += height) {
        const int rows = static_cast<int>(std::min(height, channels - c));
        T* to = sums + c * padded_columns() + panel * Tile::kCols;
        Fetch fetch;
        fetch.add_rows(to, padded_columns(), rows, Tile::kCols);
        fetch.add_rest(right + group_ * Tile::kCols + c / height * count * share, share);
        if (!accumulate) {
          gemm_tile<I, T, kSlice, Product>(rows, count, left + c, 1, right, to, padded_columns(), false, fetch);
          continue;
        }
        gemm_tile<I, T, kSlice, Product>(rows, count, left + c, 1, right, tile[0], Tile::kCols, false, fetch);
        for (int i = 0; i < rows; ++i, to += padded_columns()) {
          for (int j = 0; j < Tile::kCols; j += V::kLanes) (V::load(to + j) + V::load(tile[i] + j)).store(to + j);
        }
      }
    }
  }

  // dw[column][channel][tap] for up to kStretch channels from c0 on and one panel of columns.
  void write_windows(std::int64_t c0, std::int64_t panel, S* dw) const {
    constexpr std::int64_t kWindow = kTaps * kTaps;
    const std::int64_t channels = std::min(kStretch, gather_.channels - c0);
    const std::int64_t col0 = panel * Tile::kCols, cols = std::min<std::int64_t>(Tile::kCols, columns_ - col0);
    T windows[kStretch][kWindow][Tile::kCols], turned[Tile::kCols][kStretch * kWindow];
    for (std::int64_t c = 0; c < channels; ++c) {
      for (int j = 0; j < Tile::kCols; j += V::kLanes) {
        const T* from = sums_.data() + (c0 + c) * padded_columns() + col0 + j;
        const std::int64_t next = gather_.channels * padded_columns();
        W::transform<V, kIn, kTaps, Axis::window_gradient>(
            [&](int r, int s) { return V::load(from + (r * kIn + s) * next); },
            [&](int r, int s, V x) { x.store(windows[c][r * kTaps + s] + j); });
      }
    }
    transpose<I>(windows[0][0], Tile::kCols, turned[0], kStretch * kWindow, channels * kWindow, cols);
    for (std::int64_t j = 0; j < cols; ++j) {
      S* to = dw + ((col0 + j) * gather_.channels + c0) * kWindow;
      for_vectors<I, T>(channels * kWindow,
                        [&](std::int64_t i, auto lanes) { store(load<V>(turned[j] + i, lanes), to + i, lanes); });
    }
  }

  const Gather<I, S>& gather_;
  const S* dy_;
  std::int64_t columns_;
  WinogradPatches<kOut> patches_;
  std::int64_t slices_ = (gather_.channels + kSlice - 1) / kSlice;
  std::int64_t panels_ = (columns_ + Tile::kCols - 1) / Tile::kCols;
  Scratch<S> zeros_;
  std::int64_t group_;
  Scratch<T> inputs_, gradients_, sums_;
};

}  // namespace drupe::cpu
