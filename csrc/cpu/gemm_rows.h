// A matrix product whose B is packed once as a whole and whose A is gathered by each task for itself, block of rows by
// block of rows, right before it is used: one parallel loop, A's panels never leave L2. For a narrow B, as conv2d's.
#pragma once

#include "cpu/gemm_core.h"

namespace drupe::cpu {

// Slices of K, all but the last of one depth.
template <Isa I, class T>
struct GemmSlices {
  std::int64_t count, depth;
  explicit GemmSlices(std::int64_t K) {
    constexpr std::int64_t kDepth = GemmTile<I, T>::kDepth;
    count = std::max<std::int64_t>(1, (K + kDepth - 1) / kDepth);
    depth = std::max<std::int64_t>(1, (K + count - 1) / count);
  }
};

// B in panels, slice by slice.
template <Isa I, class T>
struct PackedColumns {
  using Tile = GemmTile<I, T>;
  std::int64_t panels;
  GemmSlices<I, T> slices;
  Scratch<T> data;

  // pack(panel, col0, cols, k0, depth) as gemm_core's pack_b.
  template <class Pack>
  PackedColumns(std::int64_t N, std::int64_t K, const Pack& pack)
      : panels((N + Tile::kCols - 1) / Tile::kCols),
        slices(K),
        data(static_cast<std::size_t>(slices.count * panels * panel_size())) {
    parallel_for(slices.count * panels, [&](std::int64_t task) {
      const std::int64_t col0 = task % panels * Tile::kCols;
      const std::int64_t k0 = task / panels * slices.depth;
      pack(data.data() + task * panel_size(), col0, std::min<std::int64_t>(Tile::kCols, N - col0), k0,
           std::min(slices.depth, K - k0));
    });
  }
  std::int64_t panel_size() const { return slices.depth * Tile::kCols; }
  const T* panel(std::int64_t slice, std::int64_t index) const {
    return data.data() + (slice * panels + index) * panel_size();
  }
};

// The product of an M x K matrix, packed by pack_a, and B; pack_a, finish and c are as gemm_core's.
template <Isa I, class T, class PackA, class Finish>
void gemm_rows(std::int64_t M, std::int64_t N, std::int64_t K, const PackA& pack_a, const PackedColumns<I, T>& b,
               const Finish& finish, T* c = nullptr, std::int64_t c_row = 0) {
  using Tile = GemmTile<I, T>;
  constexpr std::int64_t kLeastTasks = 16;  // enough for a few threads to share
  constexpr std::int64_t kPanel = Tile::kRows * Tile::kPanelStride;
  const std::int64_t tasks_down = (M + Tile::kTaskRows - 1) / Tile::kTaskRows;
  std::int64_t panels = std::min<std::int64_t>(b.panels, 2048 / Tile::kCols);
  while (panels > 2 && tasks_down * ((b.panels + panels - 1) / panels) < kLeastTasks) panels = (panels + 1) / 2;
  const std::int64_t tasks_across = (b.panels + panels - 1) / panels;
  parallel_for(tasks_down * tasks_across, [&](std::int64_t task) {
    const std::int64_t m0 = task / tasks_across * Tile::kTaskRows;
    const std::int64_t n0 = task % tasks_across * panels * Tile::kCols;
    const std::int64_t rows = std::min<std::int64_t>(Tile::kTaskRows, M - m0);
    const std::int64_t cols = std::min(panels * Tile::kCols, N - n0);
    const Scratch<T> a(static_cast<std::size_t>((rows + Tile::kRows - 1) / Tile::kRows * kPanel));
    const Scratch<T> sums(c ? 0 : static_cast<std::size_t>(rows * cols));
    T* block = c ? c + m0 * c_row + n0 : sums.data();
    const std::int64_t block_row = c ? c_row : cols;
    for (std::int64_t slice = 0; slice < b.slices.count; ++slice) {
      const std::int64_t k0 = slice * b.slices.depth;
      const std::int64_t depth = std::min(b.slices.depth, K - k0);
      for (std::int64_t m = 0; m < rows; m += Tile::kRows) {
        pack_a(a.data() + m * Tile::kPanelStride, m0 + m, std::min<std::int64_t>(Tile::kRows, rows - m), k0, depth);
      }
      gemm_block<I>(rows, cols, depth, a.data(), b.panel(slice, n0 / Tile::kCols), b.panel_size(), block, block_row,
                    slice > 0, [&](std::int64_t m, std::int64_t n, int height, std::int64_t width, T* tile) {
                      if (slice + 1 == b.slices.count) finish(m0 + m, n0 + n, height, width, tile, block_row);
                    });
    }
  });
}

}  // namespace drupe::cpu
