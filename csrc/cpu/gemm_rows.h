// The blocked product, in one parallel loop over blocks of C: B lies packed in panels, as a whole or block by block of
// its columns; A is gathered by each task for itself right before it is used, or read as it lies, and never leaves L2.
#pragma once

#include "cpu/gemm_core.h"

namespace drupe::cpu {

// A row-major matrix that `finish` reads or writes, if there is one.
struct Beside {
  const char* data = nullptr;
  std::int64_t row = 0, element = 0;  // bytes

  template <class S>
  DRUPE_INLINE static Beside of(const S* data, std::int64_t row) {
    return {reinterpret_cast<const char*>(data), row * std::int64_t{sizeof(S)}, sizeof(S)};
  }
  DRUPE_INLINE void fetch(Fetch& fetch, std::int64_t row0, std::int64_t col0, std::int64_t rows,
                          std::int64_t cols) const {
    if (data) fetch.add_rows(data + row0 * row + col0 * element, row, rows, cols * element);
  }
};

// Where sums and results lie.
template <class T>
struct GemmResult {
  T* sums = nullptr;                // for sums of some slices of K: C itself, where its dtype is T
  std::int64_t sums_row = 0;        // elements
  bool in_place = false;            // sums are the result, and nothing is left to be finished
  Beside written = {}, added = {};  // by finish, fetched while the last sums are made
};

// The product of rows row0 … row0 + M - 1 of A and the slices of B that lie in panels at b. `left` is A, in the forms
// that PackedRows tells. After the last slice finish(row, col, rows, cols, tile, tile_row) takes the tile that begins
// there; called once for each element. Sums before these slices, and after them if more are to come, lie in
// result.sums, whose first element is that of row0 and the panels' first column. Where K is one slice that is not to
// stay in place, a tile lies apart until it is finished: the rows of sums may all compete for one cache set.
template <Isa I, class P = Product, class T, class Left, class Finish>
void gemm_rows(std::int64_t row0, std::int64_t M, const ColumnPanels<I, T>& layout, const T* b, const Left& left,
               const Finish& finish, const GemmResult<T>& result = {}) {
  using Tile = GemmTile<I, T>;
  constexpr std::int64_t kLeastTasks = 16;  // enough for a few threads to share
  // A's rows of a task are to stay in L2, beside two panels of B.
  constexpr std::int64_t kPanelBytes = Tile::kPanelSize * static_cast<std::int64_t>(sizeof(T));
  const std::int64_t most_rows = std::clamp<std::int64_t>(caches().l2 * 3 / 8 / kPanelBytes, 4, 8) * Tile::kRows;
  constexpr bool kMayBeByDepth = requires { left.by_depth(); };
  const RowsInPlace<T> lying = left.in_place();
  bool by_depth = false;
  if constexpr (kMayBeByDepth) by_depth = left.by_depth();
  const std::int64_t tasks_down = std::max(ceil_div(M, most_rows), std::min(kLeastTasks, ceil_div(M, most_rows / 2)));
  std::int64_t panels = std::min<std::int64_t>(layout.panels, Tile::kTaskCols / Tile::kCols);
  while (panels > 2 && tasks_down * ceil_div(layout.panels, panels) < kLeastTasks) panels = (panels + 1) / 2;
  const std::int64_t tasks_across = ceil_div(layout.panels, panels);
  const bool apart = layout.slices.count == 1 && !result.in_place;
  parallel_for(tasks_down * tasks_across, [&](std::int64_t task) {
    const auto [m0, m_end] = share_of(M, Tile::kRows, task / tasks_across, tasks_down);
    const auto [n0, n_end] = share_of(layout.N, Tile::kCols, task % tasks_across, tasks_across);
    const std::int64_t row = row0 + m0, rows = m_end - m0, col = layout.col0 + n0, cols = n_end - n0;
    const Scratch<T> a(lying.data ? 0 : static_cast<std::size_t>(ceil_div(rows, Tile::kRows) * Tile::kPanelSize));
    const std::int64_t own_row = cols + Tile::kPadding;
    const Scratch<T> sums(result.sums || apart ? 0 : static_cast<std::size_t>(rows * own_row));
    T* block = apart ? nullptr : result.sums ? result.sums + m0 * result.sums_row + n0 : sums.data();
    const std::int64_t block_row = apart ? Tile::kCols : result.sums ? result.sums_row : own_row;
    for (std::int64_t slice = layout.first; slice <= layout.last; ++slice) {
      const std::int64_t k0 = slice * layout.slices.depth;
      const std::int64_t depth = std::min(layout.slices.depth, layout.K - k0);
      const bool last = slice + 1 == layout.slices.count;
      const auto multiply = [&]<bool kByDepth>(const T* rows_of_a, std::int64_t a_row) {
        gemm_block<I, kByDepth, P>(
            rows, cols, depth, rows_of_a, a_row, b + layout.offset(slice, n0 / Tile::kCols), layout.panel_size(), block,
            block_row, slice > 0,
            [&](std::int64_t m, std::int64_t n, int height, std::int64_t width, T* tile) {
              if (last) finish(row + m, col + n, height, width, tile, block_row);
            },
            [&](Fetch& fetch, std::int64_t m, std::int64_t n, int height, std::int64_t width) {
              if (!last) return;
              if (apart || result.written.element != sizeof(T)) {  // not where the sums are
                result.written.fetch(fetch, row + m, col + n, height, width);
              }
              result.added.fetch(fetch, row + m, col + n, height, width);
            });
      };
      if (lying.data) {
        multiply.template operator()<false>(lying.data + row * lying.row + k0, lying.row);
        continue;
      }
      if constexpr (kMayBeByDepth) {
        if (by_depth) {
          left.pack_by_depth(a.data(), row, rows, k0, depth);
          multiply.template operator()<true>(a.data(), Tile::kPanelStride);
          continue;
        }
      }
      for (std::int64_t m = 0; m < rows; m += Tile::kRows) {
        left.pack_rows(a.data() + m * Tile::kPanelStride, row + m, std::min<std::int64_t>(Tile::kRows, rows - m), k0,
                       depth);
      }
      multiply.template operator()<false>(a.data(), Tile::kPanelStride);
    }
    stream_fence<I>();
  });
}

// The product of an M x K and a K x N matrix, of which the second lies in `panels`, or without them is packed here,
// block by block of what caches hold; pack_b is ColumnPanels::fill's, the rest as gemm_rows'.
template <Isa I, class P = Product, class T, class Left, class PackB, class Finish>
void gemm_blocks(std::int64_t M, std::int64_t N, std::int64_t K, const Left& left, const PackB& pack_b,
                 const Finish& finish, const GemmResult<T>& result = {}, const T* panels = nullptr) {
  using Tile = GemmTile<I, T>;
  if (panels) return gemm_rows<I, P>(0, M, ColumnPanels<I, T>(N, K), panels, left, finish, result);
  const std::int64_t b_size = caches().l3 * 3 / 8 / static_cast<std::int64_t>(sizeof(T));  // of a block of B
  constexpr std::int64_t kLeastCols = 512, kPartialRows = 96 * Tile::kRows;
  const GemmSlices<I, T> slices(K);
  const std::int64_t most_cols = std::clamp(b_size / (slices.count * slices.depth), kLeastCols, Tile::kTaskCols);
  const std::int64_t blocks = ceil_div(N, most_cols), cols = round_up(ceil_div(N, blocks), Tile::kCols);
  const std::int64_t chunk = std::clamp<std::int64_t>(b_size / (cols * slices.depth), 1, slices.count);
  const bool whole = chunk == slices.count;
  const bool own_sums = !whole && !result.sums;
  const std::int64_t most_rows = own_sums ? std::min(M, kPartialRows) : M;
  const Scratch<T> b(static_cast<std::size_t>(chunk * cols * slices.depth));
  const Scratch<T> sums(own_sums ? static_cast<std::size_t>(most_rows * cols) : 0);
  for (std::int64_t block = 0; block < blocks; ++block) {
    const auto [n0, n_end] = share_of(N, Tile::kCols, block, blocks);
    ColumnPanels<I, T> layout(n_end - n0, K);
    layout.col0 = n0;
    for (std::int64_t m0 = 0; m0 < M; m0 += most_rows) {
      GemmResult<T> part = result;
      part.sums = own_sums ? sums.data() : result.sums ? result.sums + m0 * result.sums_row + n0 : nullptr;
      if (own_sums) part.sums_row = cols;
      for (std::int64_t first = 0; first < slices.count; first += chunk) {
        layout.first = first;
        layout.last = std::min(slices.count, first + chunk) - 1;
        layout.fill(b.data(), pack_b);
        gemm_rows<I, P>(m0, std::min(most_rows, M - m0), layout, b.data(), left, finish, part);
      }
    }
  }
}

}  // namespace drupe::cpu
