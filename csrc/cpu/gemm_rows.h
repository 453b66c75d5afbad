// A matrix product whose B is packed once as a whole and whose A is gathered by each task for itself, block of rows by
// block of rows, right before it is used: one parallel loop, A's panels never leave L2. For a narrow B, as conv2d's.
#pragma once

#include "cpu/gemm_core.h"

namespace drupe::cpu {

// The product of an M x K matrix, packed by pack_a, and B, whose panels lie at b; pack_a, finish and c are as
// gemm_core's. With `in_place`, finish does nothing, and the result is to lie in c. Otherwise, where K is one slice, a
// tile lies apart until it is finished: c's rows may all compete for one cache set.
template <Isa I, class P = Product, class T, class PackA, class Finish>
void gemm_rows(std::int64_t M, const ColumnPanels<I, T>& layout, const T* b, const PackA& pack_a, const Finish& finish,
               T* c = nullptr, std::int64_t c_row = 0, bool in_place = false) {
  using Tile = GemmTile<I, T>;
  constexpr std::int64_t kLeastTasks = 16;  // enough for a few threads to share
  constexpr std::int64_t kPanel = Tile::kRows * Tile::kPanelStride;
  const std::int64_t tasks_down = (M + Tile::kTaskRows - 1) / Tile::kTaskRows;
  std::int64_t panels = std::min<std::int64_t>(layout.panels, 2048 / Tile::kCols);
  while (panels > 2 && tasks_down * ((layout.panels + panels - 1) / panels) < kLeastTasks) panels = (panels + 1) / 2;
  const std::int64_t tasks_across = (layout.panels + panels - 1) / panels;
  parallel_for(tasks_down * tasks_across, [&](std::int64_t task) {
    const auto [m0, m_end] = share_of(M, Tile::kRows, task / tasks_across, tasks_down);
    const auto [n0, n_end] = share_of(layout.N, Tile::kCols, task % tasks_across, tasks_across);
    const std::int64_t rows = m_end - m0, cols = n_end - n0;
    const Scratch<T> a(static_cast<std::size_t>((rows + Tile::kRows - 1) / Tile::kRows * kPanel));
    const bool apart = layout.slices.count == 1 && !in_place;
    const std::int64_t own_row = cols + Tile::kPadding;
    const Scratch<T> sums(c || apart ? 0 : static_cast<std::size_t>(rows * own_row));
    T* block = apart ? nullptr : c ? c + m0 * c_row + n0 : sums.data();
    const std::int64_t block_row = apart ? Tile::kCols : c ? c_row : own_row;
    for (std::int64_t slice = 0; slice < layout.slices.count; ++slice) {
      const std::int64_t k0 = slice * layout.slices.depth;
      const std::int64_t depth = std::min(layout.slices.depth, layout.K - k0);
      for (std::int64_t m = 0; m < rows; m += Tile::kRows) {
        pack_a(a.data() + m * Tile::kPanelStride, m0 + m, std::min<std::int64_t>(Tile::kRows, rows - m), k0, depth);
      }
      gemm_block<I, false, P>(
          rows, cols, depth, a.data(), b + layout.offset(slice, n0 / Tile::kCols), layout.panel_size(), block,
          block_row, slice > 0,
          [&, row0 = m0, col0 = n0](std::int64_t m, std::int64_t n, int height, std::int64_t width, T* tile) {
            if (slice + 1 == layout.slices.count) finish(row0 + m, col0 + n, height, width, tile, block_row);
          });
    }
    stream_fence<I>();
  });
}

}  // namespace drupe::cpu
