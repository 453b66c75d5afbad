// A convolution's operands as the panels of a matrix product, gathered from NHWC without an im2col in memory.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/gemm_bf16.h"
#include "cpu/lanes.h"
#include "ops/conv2d.h"
#include "ops/conv2d_gather.h"

namespace drupe::cpu {

// T is S or its accumulator. With kBeyond, up to kRunPadding bytes past the run are read and written.
inline constexpr std::int64_t kRunPadding = 64;
template <Isa I, bool kBeyond = false, class S, class T>
DRUPE_INLINE void copy_run(T* to, const S* from, std::int64_t count) {
  if constexpr (std::is_same_v<S, T> && kBeyond) {
    constexpr std::int64_t kStep = kRunPadding / sizeof(S);
    for (std::int64_t i = 0; i < count; i += kStep) std::memcpy(to + i, from + i, kRunPadding);
  } else if constexpr (!std::is_same_v<T, Accumulator<S>>) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(S));
  } else if constexpr (kBeyond) {
    using V = Vec<T, I>;
    for (std::int64_t i = 0; i < count; i += V::kLanes) V::load(from + i).store(to + i);
  } else {
    using V = Vec<T, I>;
    for_vectors<I, T>(count, [&](std::int64_t i, auto lanes) { store(load<V>(from + i, lanes), to + i, lanes); });
  }
}

template <bool kBeyond = false, class T>
DRUPE_INLINE void zero_run(T* to, std::int64_t count) {
  if constexpr (kBeyond) {
    constexpr std::int64_t kStep = kRunPadding / sizeof(T);
    for (std::int64_t i = 0; i < count; i += kStep) std::memset(to + i, 0, kRunPadding);
  } else {
    std::memset(to, 0, static_cast<std::size_t>(count) * sizeof(T));
  }
}

// The matrix of rows (n, i, j) and columns (tap_h, tap_w, channel).
template <Isa I, class S>
struct Gather {
  using T = Accumulator<S>;
  GatherAxis h, w;
  const S* source;         // at the group's first channel
  std::int64_t pitch;      // channels of a pixel in memory
  std::int64_t channels;   // of them, those of the group
  const S* end = nullptr;  // of the memory behind source: up to there more than a row's elements may be read

  std::int64_t rows(std::int64_t images) const { return images * h.rows * w.rows; }
  std::int64_t depth() const { return h.taps * w.taps * channels; }
  // Whether the rows are the pixels as they lie.
  bool plain() const {
    const auto whole = [](const GatherAxis& axis) {
      return axis.taps == 1 && axis.step == 1 && axis.base == 0 && axis.rows == axis.source;
    };
    return whole(h) && whole(w);
  }

  // Where the first tap of a row reads.
  struct Position {
    std::int64_t image, h, w;
  };
  void locate(Position* positions, std::int64_t row0, std::int64_t count) const {
    std::int64_t j = row0 % w.rows;
    std::int64_t i = row0 / w.rows % h.rows;
    std::int64_t n = row0 / w.rows / h.rows;
    for (std::int64_t row = 0; row < count; ++row) {
      positions[row] = {n, i * h.step + h.base, j * w.step + w.base};
      if (++j == w.rows) {
        j = 0;
        if (++i == h.rows) i = 0, ++n;
      }
    }
  }

  // to[row * to_row + k] = element (row, k0 + k) for k < depth. With kBeyond, kRunPadding bytes beyond may be written.
  template <bool kBeyond = false, class Out>
  void copy(Out* to, std::int64_t to_row, const Position* positions, std::int64_t count, std::int64_t k0,
            std::int64_t depth) const {
    if (depth <= 0) return;
    // Taps that are neighbours in memory make one run.
    const std::int64_t fused = w.spread == 1 && channels == pitch ? w.taps : 1;
    const std::int64_t run = fused * channels, runs = w.taps / fused;  // a line of taps has `runs` of them
    const std::int64_t line = h.spread * w.source * pitch, next = w.spread * pitch;
    const std::int64_t reach_h = (h.taps - 1) * h.spread, reach_w = (w.taps - 1) * w.spread;
    // From a row's first element to where copying its last run may read to.
    const std::int64_t span =
        (std::max<std::int64_t>(0, reach_h) * w.source + std::max<std::int64_t>(0, reach_w) + 1) * pitch +
        kRunPadding / static_cast<std::int64_t>(sizeof(S));
    const std::int64_t first_h = k0 / run / runs, first_w = k0 / run % runs, first = k0 % run;
    for (std::int64_t row = 0; row < count; ++row) {
      const Position& at = positions[row];
      const std::int64_t corner = ((at.image * h.source + at.h) * w.source + at.w) * pitch;
      const bool whole = within(h, at.h) && within(h, at.h + reach_h) && within(w, at.w) && within(w, at.w + reach_w) &&
                         (!kBeyond || span <= end - source - corner);
      Out* dst = to + row * to_row;
      std::int64_t tap_h = first_h, tap_w = first_w, from = first;
      const S* taps = source + corner + tap_h * line;
      for (std::int64_t left = depth; left > 0; from = 0) {
        const std::int64_t length = std::min(run - from, left);
        if (whole) {
          copy_run<I, kBeyond>(dst, taps + tap_w * next + from, length);
        } else {
          copy_part<kBeyond>(dst, at.image, at.h + tap_h * h.spread, at.w + tap_w * w.spread, fused, from, length);
        }
        dst += length;
        left -= length;
        if (++tap_w == runs) tap_w = 0, ++tap_h, taps += line;
      }
    }
  }

  // As PackedRows'.
  void pack_rows(T* panel, std::int64_t row0, std::int64_t count, std::int64_t k0, std::int64_t depth) const {
    using Tile = GemmTile<I, T>;
    Position positions[Tile::kRows];
    locate(positions, row0, count);
    copy<true>(panel, Tile::kPanelStride, positions, count, k0, depth);
  }

  // The same in pairs along k, as the panels of gemm_bf16.h.
  void pack_row_pairs(float* panel, std::int64_t row0, std::int64_t count, std::int64_t k0, std::int64_t depth) const {
    using Tile = GemmTile<I, float>;
    Position positions[Tile::kRows];
    locate(positions, row0, count);
    auto* to = reinterpret_cast<S*>(panel);
    const std::int64_t elements = std::min(2 * depth, this->depth() - 2 * k0);
    copy<true>(to, 2 * Tile::kPanelStride, positions, count, 2 * k0, elements);
    for (std::int64_t row = 0; row < count && elements < 2 * depth; ++row) {
      zero_run(to + row * 2 * Tile::kPanelStride + elements, 1);
    }
  }

 private:
  static bool within(const GatherAxis& axis, std::int64_t i) { return i >= 0 && i < axis.source; }

  // to[i] = element from + i of the run of `taps` taps that begins at a position, zero outside of the image.
  template <bool kBeyond, class Out>
  void copy_part(Out* to, std::int64_t image, std::int64_t at_h, std::int64_t at_w, std::int64_t taps,
                 std::int64_t from, std::int64_t length) const {
    if (!within(h, at_h)) {
      zero_run<kBeyond>(to, length);
      return;
    }
    const S* src = source + ((image * h.source + at_h) * w.source + at_w) * pitch + from;
    const std::int64_t low = std::clamp(-at_w * channels - from, std::int64_t{0}, length);
    const std::int64_t high = std::clamp((std::min(w.source - at_w, taps)) * channels - from, low, length);
    if (low > 0 || high < length) zero_run<kBeyond>(to, length);
    copy_run<I>(to + low, src + low, high - low);
  }
};

// The weight of one group as a matrix: row (tap_h, tap_w, channel), column; strides count elements.
template <Isa I, class S>
struct Filters {
  using T = Accumulator<S>;
  const S* data;
  std::int64_t width;  // S
  std::int64_t channel_stride, column_stride;
  const GatherAxis &h, &w;
  std::int64_t channels;

  std::int64_t offset(std::int64_t tap_h, std::int64_t tap_w) const {
    return (h.first_tap + tap_h * h.tap_step) * width + w.first_tap + tap_w * w.tap_step;
  }
  // to[(i * taps + at) * kCols + j] = the weight of channel0 + i and column col0 + j at a place of the window that
  // offset() names.
  void windows(T* to, std::int64_t channel0, std::int64_t count, std::int64_t col0, std::int64_t cols) const {
    constexpr std::int64_t kCols = GemmTile<I, T>::kCols;
    const std::int64_t taps = h.taps * w.taps;
    const std::int64_t run = channel_stride == taps ? count : 1;  // channels that are neighbours in memory
    for (std::int64_t i = 0; i < count; i += run) {
      const S* from = data + (channel0 + i) * channel_stride + col0 * column_stride;
      StridedMatrix<I, S>::transposed(to + i * taps * kCols, kCols, from, column_stride, cols, run * taps);
    }
  }
  // As ColumnPanels::fill's pack.
  void pack(T* panel, std::int64_t col0, std::int64_t cols, std::int64_t k0, std::int64_t depth) const {
    constexpr std::int64_t kCols = GemmTile<I, T>::kCols;
    const S* columns = data + col0 * column_stride;
    for (std::int64_t k = 0; k < depth; ++k) {
      const std::int64_t tap = (k0 + k) / channels;
      const S* from = columns + (k0 + k) % channels * channel_stride + offset(tap / w.taps, tap % w.taps);
      T* to = panel + k * kCols;
      for (std::int64_t j = 0; j < cols; ++j) to[j] = static_cast<T>(from[j * column_stride]);
      for (std::int64_t j = cols; j < kCols; ++j) to[j] = T(0);
    }
  }
  // The same in pairs along k, as the panels of gemm_bf16.h.
  void pack_pairs(float* panel, std::int64_t col0, std::int64_t cols, std::int64_t k0, std::int64_t depth) const {
    constexpr std::int64_t kCols = GemmTile<I, float>::kCols;
    const std::int64_t K = h.taps * w.taps * channels;
    const auto row = [&](std::int64_t k) {
      const std::int64_t tap = k / channels;
      return data + col0 * column_stride + k % channels * channel_stride + offset(tap / w.taps, tap % w.taps);
    };
    for (std::int64_t k = 0; k < depth; ++k) {
      const std::int64_t first = 2 * (k0 + k);
      const S *low = row(first), *high = first + 1 < K ? row(first + 1) : nullptr;
      float* to = panel + k * kCols;
      for (std::int64_t j = 0; j < cols; ++j) {
        to[j] = bf16_pair(low[j * column_stride], high ? high[j * column_stride] : S{});
      }
      for (std::int64_t j = cols; j < kCols; ++j) to[j] = 0;
    }
  }
};

// The weight of the first group, whose axes outlive it.
template <Isa I, class S>
Filters<I, S> forward_filters(const Conv2dArgs& args, const GatherAxis& h, const GatherAxis& w) {
  const std::int64_t C = args.C / args.groups, window = args.h.kernel * args.w.kernel;
  return {.data = static_cast<const S*>(args.weight),
          .width = args.w.kernel,
          .channel_stride = window,
          .column_stride = C * window,
          .h = h,
          .w = w,
          .channels = C};
}

}  // namespace drupe::cpu
