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

template <class T>
DRUPE_INLINE void zero_run(T* to, std::int64_t count) {
  std::memset(to, 0, static_cast<std::size_t>(count) * sizeof(T));
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
    // Taps that are neighbours in memory make one run.
    const std::int64_t fused = w.spread == 1 && channels == pitch ? w.taps : 1;
    const std::int64_t run = fused * channels;
    for (std::int64_t k = k0; k < k0 + depth;) {
      const std::int64_t index = k / run;
      const std::int64_t from = k % run;
      const std::int64_t length = std::min(run - from, k0 + depth - k);
      const std::int64_t tap_h = fused == w.taps ? index : index / w.taps;
      const std::int64_t tap_w = fused == w.taps ? 0 : index % w.taps;
      for (std::int64_t row = 0; row < count; ++row) {
        const std::int64_t at_h = positions[row].h + tap_h * h.spread;
        const std::int64_t at_w = positions[row].w + tap_w * w.spread;
        Out* dst = to + row * to_row + (k - k0);
        if (at_h < 0 || at_h >= h.source) {
          zero_run(dst, length);
          continue;
        }
        const S* src = source + ((positions[row].image * h.source + at_h) * w.source + at_w) * pitch + from;
        if (at_w >= 0 && at_w + fused <= w.source) {
          if (kBeyond && end - src >= length + kRunPadding / static_cast<std::int64_t>(sizeof(S))) {
            copy_run<I, true>(dst, src, length);
          } else {
            copy_run<I>(dst, src, length);
          }
        } else {
          const std::int64_t low = std::clamp(-at_w * channels - from, std::int64_t{0}, length);
          const std::int64_t high = std::clamp((w.source - at_w) * channels - from, low, length);
          zero_run(dst, low);
          copy_run<I>(dst + low, src + low, high - low);
          zero_run(dst + high, length - high);
        }
      }
      k += length;
    }
  }

  // As gemm_core's pack_a.
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
      StridedMatrix<I, S>::transpose(to + i * taps * kCols, kCols, from, column_stride, cols, run * taps);
    }
  }
  // As gemm_core's pack_b.
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

}  // namespace drupe::cpu
