// A matrix product whose B is packed once as a whole and whose A is gathered by each task for itself, block of rows by
// block of rows, right before it is used, or read as it lies: one parallel loop, A's panels never leave L2.
#pragma once

#include "cpu/gemm_core.h"

namespace drupe::cpu {

// Where finish writes, if given: rows of it are asked for while their sums are made.
struct ResultRows {
  char* data = nullptr;
  std::int64_t row_bytes = 0, col_bytes = 0;

  void fetch(std::int64_t row, std::int64_t col, std::int64_t rows, std::int64_t cols) const {
    if (!data) return;
    for (std::int64_t i = row; i < row + rows; ++i) {
      char* line = data + i * row_bytes + col * col_bytes;
      for (std::int64_t at = 0; at < cols * col_bytes; at += 64) __builtin_prefetch(line + at, 1);
    }
  }
};

// The product of an M x K matrix, packed by pack_a, and B, whose panels lie at b; pack_a, finish and c are as
// gemm_core's. With `in_place`, finish does nothing, and the result is to lie in c. Otherwise, where K is one slice, a
// tile lies apart until it is finished: c's rows may all compete for one cache set. Where `left` has A, it is not
// packed.
template <Isa I, class P = Product, class T, class PackA, class Finish>
void gemm_rows(std::int64_t M, const ColumnPanels<I, T>& layout, const T* b, const PackA& pack_a, const Finish& finish,
               T* c = nullptr, std::int64_t c_row = 0, bool in_place = false, const ResultRows& result = {},
               const RowsInPlace<T>& left = {}) {
  using Tile = GemmTile<I, T>;
  constexpr std::int64_t kLeastTasks = 16;  // enough for a few threads to share
  constexpr std::int64_t kLeastRows = Tile::kTaskRows / 2;
  constexpr std::int64_t kPanel = Tile::kRows * Tile::kPanelStride;
  std::int64_t tasks_down = ceil_div(M, Tile::kTaskRows);
  tasks_down = std::max(tasks_down, std::min(kLeastTasks, ceil_div(M, kLeastRows)));
  std::int64_t panels = std::min<std::int64_t>(layout.panels, 2048 / Tile::kCols);
  while (panels > 2 && tasks_down * ceil_div(layout.panels, panels) < kLeastTasks) panels = (panels + 1) / 2;
  const std::int64_t tasks_across = ceil_div(layout.panels, panels);
  parallel_for(tasks_down * tasks_across, [&](std::int64_t task) {
    const auto [m0, m_end] = share_of(M, Tile::kRows, task / tasks_across, tasks_down);
    const auto [n0, n_end] = share_of(layout.N, Tile::kCols, task % tasks_across, tasks_across);
    const std::int64_t rows = m_end - m0, cols = n_end - n0;
    const std::int64_t packed_rows = left.data ? 0 : rows;
    const Scratch<T> a(static_cast<std::size_t>(ceil_div(packed_rows, Tile::kRows) * kPanel));
    const bool apart = layout.slices.count == 1 && !in_place;
    const std::int64_t own_row = cols + Tile::kPadding;
    const Scratch<T> sums(c || apart ? 0 : static_cast<std::size_t>(rows * own_row));
    T* block = apart ? nullptr : c ? c + m0 * c_row + n0 : sums.data();
    const std::int64_t block_row = apart ? Tile::kCols : c ? c_row : own_row;
    for (std::int64_t slice = 0; slice < layout.slices.count; ++slice) {
      const std::int64_t k0 = slice * layout.slices.depth;
      const std::int64_t depth = std::min(layout.slices.depth, layout.K - k0);
      const bool last = slice + 1 == layout.slices.count;
      for (std::int64_t m = 0; m < packed_rows; m += Tile::kRows) {
        pack_a(a.data() + m * Tile::kPanelStride, m0 + m, std::min<std::int64_t>(Tile::kRows, rows - m), k0, depth);
      }
      gemm_block<I, false, P>(
          rows, cols, depth, left.data ? left.data + m0 * left.row + k0 : a.data(),
          left.data ? left.row : Tile::kPanelStride, b + layout.offset(slice, n0 / Tile::kCols), layout.panel_size(),
          block, block_row, slice > 0,
          [&, row0 = m0, col0 = n0](std::int64_t m, std::int64_t n, int height, std::int64_t width, T* tile) {
            if (last) finish(row0 + m, col0 + n, height, width, tile, block_row);
          },
          [&, row0 = m0, col0 = n0](std::int64_t m, std::int64_t n, int height, std::int64_t width) {
            if (last) result.fetch(row0 + m, col0 + n, height, width);
          });
    }
    stream_fence<I>();
  });
}

}  // namespace drupe::cpu
