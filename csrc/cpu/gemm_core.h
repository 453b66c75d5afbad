// The blocked matrix product that gemm and conv2d share: who packs the operands, and what happens to a
// finished tile, is up to the caller.
//
// C (M x N) is cut into outer blocks; per block and per slice of K both operands are packed once, in
// parallel, into panels, and then C's tiles are computed in parallel. A's panel: kRows rows, contiguous along
// k, at a fixed stride. B's panel: kCols columns, row k after row k. A microkernel keeps a kRows x kCols tile
// of C in registers, reads a B row as vectors, and broadcasts A's elements. Loads per k: kRows broadcasts and
// kVectors vectors for kVectors kRows FMAs.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/simd.h"

namespace drupe::cpu {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) {
  return ceil_div(a, b) * b;
}

// Register tile and cache blocks, in elements of the accumulator type T.
template <Isa I, class T>
struct GemmTile {
  using V = Vec<T, I>;
  static constexpr int kRows = I == Isa::avx512 ? 14 : I == Isa::scalar ? 4 : 6;
  static constexpr int kVectors = I == Isa::avx512 || I == Isa::avx2 ? 2 : 4;
  static constexpr int kCols = kVectors * V::kLanes;
  static constexpr std::int64_t kDepth = 3072 / sizeof(T);  // of a K slice: an A panel stays about L1, B panels in L2
  static constexpr std::int64_t kPadding = 64 / sizeof(T);  // keeps a panel's rows out of one cache set
  static constexpr std::int64_t kPanelStride = kDepth + kPadding;
  static constexpr std::int64_t kOuterRows = 96 * kRows;  // of an outer block
  static constexpr std::int64_t kOuterCols = 2048 / kCols * kCols;
  static constexpr std::int64_t kTaskRows = 8 * kRows;  // of one task's share of C
  static constexpr std::int64_t kTaskCols = (I == Isa::scalar ? 8 : 8 * 32 / kCols) * kCols;
};

// What an element of A's panel and one of B's add to the sum, and the sum of two sums. Elements of panels, and sums,
// may be anything of T's size, as the pairs of gemm_bf16.h and the integers of simd_int8.h.
struct Product {
  template <class V>
  DRUPE_INLINE static V add(V left, V right, V sum) {
    return fma(left, right, sum);
  }
  template <class V>
  DRUPE_INLINE static V join(V before, V sum) {
    return before + sum;
  }
};

// Where a microkernel's reader of the next panel finds it: at each k, the line at from + k * step is fetched into L2.
template <class T>
struct NextPanel {
  const T* from;
  std::int64_t step;
};

// The elements of A at one k for kRows rows: `row` apart where kDepthStep is 1, else neighbours.
template <class T, int kRows, int kDepthStep>
class LeftColumn {
 public:
  DRUPE_INLINE LeftColumn(const T* a, std::int64_t row) : row_(row) {
#pragma GCC unroll 8
    for (int i = 0; i < kPointers; ++i) at_[i] = a + i * kReach * row;
  }
  DRUPE_INLINE T operator[](int i) const { return kDepthStep == 1 ? at_[i / kReach][i % kReach * row_] : at_[0][i]; }
  DRUPE_INLINE void advance() {
#pragma GCC unroll 8
    for (int i = 0; i < kPointers; ++i) {
      at_[i] += kDepthStep;
      asm("" : "+r"(at_[i]));  // else the compiler derives one from another, in the loop
    }
  }

 private:
  static constexpr int kReach = 3;  // rows that a pointer and one stride address: 0, 1 and 2 times
  static constexpr int kPointers = kDepthStep == 1 ? (kRows + kReach - 1) / kReach : 1;
  const T* at_[kPointers];
  std::int64_t row_;
};

// c[i][j] (+)= sum over k of a[i][k] b[k][j] for a whole register tile.
template <Isa I, class T, int kRows, int kDepthStep, class P>
[[gnu::noinline]] void gemm_microkernel(std::int64_t depth, const T* a, std::int64_t a_row, const T* b, T* c,
                                        std::int64_t c_row, bool accumulate, NextPanel<T> next) {
  using Tile = GemmTile<I, T>;
  using V = Vec<T, I>;
  constexpr int kLine = 64 / sizeof(T);
  V sum[kRows][Tile::kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Tile::kVectors; ++j) {
      sum[i][j] = V::zero();
      __builtin_prefetch(c + i * c_row + j * V::kLanes, 1);
    }
  }
  LeftColumn<T, kRows, kDepthStep> column(a, a_row);
  for (std::int64_t k = 0; k < depth; ++k) {
    V row[Tile::kVectors];
    __builtin_prefetch(next.from, 0, 2);
    next.from += next.step;
#pragma GCC unroll 4
    for (int j = 0; j < Tile::kCols; j += kLine) __builtin_prefetch(b + (k + 16) * Tile::kCols + j);
#pragma GCC unroll 4
    for (int j = 0; j < Tile::kVectors; ++j) row[j] = V::load(b + k * Tile::kCols + j * V::kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const V left = V::set(column[i]);
#pragma GCC unroll 4
      for (int j = 0; j < Tile::kVectors; ++j) sum[i][j] = P::add(left, row[j], sum[i][j]);
    }
    column.advance();
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Tile::kVectors; ++j) {
      T* to = c + i * c_row + j * V::kLanes;
      (accumulate ? P::join(V::load(to), sum[i][j]) : sum[i][j]).store(to);
    }
  }
}

// Picks the microkernel for 1 <= rows <= kRows. a[i][k] lies at i * a_row + k, or with another kDepthStep at
// i + k * kDepthStep. Without `next` nothing is fetched.
template <Isa I, class T, int kDepthStep, class P, int kRows = GemmTile<I, T>::kRows>
void gemm_tile(int rows, std::int64_t depth, const T* a, std::int64_t a_row, const T* b, T* c, std::int64_t c_row,
               bool accumulate, const NextPanel<T>* next = nullptr) {
  if (rows == kRows) {
    gemm_microkernel<I, T, kRows, kDepthStep, P>(depth, a, a_row, b, c, c_row, accumulate,
                                                 next ? *next : NextPanel<T>{b, 0});
  } else if constexpr (kRows > 1) {
    gemm_tile<I, T, kDepthStep, P, kRows - 1>(rows, depth, a, a_row, b, c, c_row, accumulate, next);
  }
}

struct Ignore {
  void operator()(auto...) const {}
};

// C (+)= A B for rows x cols of C. B's panels follow one another at b_panel; A's rows lie a_row apart, packed or not,
// or with kByDepth in panels by depth, kRows * a_row apart. Calls start(row, col, height, width) before each tile,
// where something may be fetched, and done(row, col, height, width, tile) after it. Without c a tile lies, until done
// returns, in a place of its own with rows of kCols.
template <Isa I, bool kByDepth = false, class P = Product, class T, class Done, class Start = Ignore>
void gemm_block(std::int64_t rows, std::int64_t cols, std::int64_t depth, const T* a, std::int64_t a_row, const T* b,
                std::int64_t b_panel, T* c, std::int64_t c_row, bool accumulate, const Done& done,
                const Start& start = {}) {
  using Tile = GemmTile<I, T>;
  constexpr int kDepthStep = kByDepth ? Tile::kRows : 1;
  alignas(64) T edge[Tile::kRows * Tile::kCols];
  const std::int64_t panels_down = ceil_div(rows, Tile::kRows);
  const std::int64_t next_step = ceil_div(Tile::kCols, panels_down);  // each tile fetches its share
  for (std::int64_t n = 0; n < cols; n += Tile::kCols) {
    const T* right = b + n / Tile::kCols * b_panel;
    const std::int64_t width = std::min<std::int64_t>(Tile::kCols, cols - n);
    const auto bytes = static_cast<std::size_t>(width) * sizeof(T);
    for (std::int64_t m = 0; m < rows; m += Tile::kRows) {
      const T* left = a + m * a_row;
      const int height = static_cast<int>(std::min<std::int64_t>(Tile::kRows, rows - m));
      T* tile = c ? c + m * c_row + n : edge;
      const NextPanel<T> next{right + b_panel + m / Tile::kRows * depth * next_step, next_step};
      start(m, n, height, width);
      if (width == Tile::kCols || !c) {
        gemm_tile<I, T, kDepthStep, P>(height, depth, left, a_row, right, tile, c ? c_row : Tile::kCols, accumulate,
                                       &next);
      } else {
        for (int i = 0; i < height && accumulate; ++i) {
          std::memcpy(edge + i * Tile::kCols, tile + i * c_row, bytes);
        }
        gemm_tile<I, T, kDepthStep, P>(height, depth, left, a_row, right, edge, Tile::kCols, accumulate, &next);
        for (int i = 0; i < height; ++i) std::memcpy(tile + i * c_row, edge + i * Tile::kCols, bytes);
      }
      done(m, n, height, width, tile);
    }
  }
}

// The range of elements in share i of n almost equal ones, in whole panels.
inline std::pair<std::int64_t, std::int64_t> share_of(std::int64_t size, std::int64_t panel, std::int64_t i,
                                                      std::int64_t n) {
  const std::int64_t panels = ceil_div(size, panel);
  return {panels * i / n * panel, std::min(size, panels * (i + 1) / n * panel)};
}

// A as it lies, for tiles to read it there: element (i, k) at data[i * row + k]. Null where it has to be packed.
template <class T>
struct RowsInPlace {
  const T* data = nullptr;
  std::int64_t row = 0;

  // Whether the rows of a tile leave each other in L1: at most four of them share a set, which 4 KiB apart they do.
  static bool fit(std::int64_t row, std::int64_t tile_rows) {
    const std::int64_t bytes = row * static_cast<std::int64_t>(sizeof(T));
    return tile_rows * std::min<std::int64_t>(bytes & -bytes, 4096) <= 4 * 4096;
  }
};

// Slices of K, all but the last of one depth.
template <Isa I, class T>
struct GemmSlices {
  std::int64_t count, depth;
  explicit GemmSlices(std::int64_t K) {
    constexpr std::int64_t kDepth = GemmTile<I, T>::kDepth;
    count = std::max<std::int64_t>(1, ceil_div(K, kDepth));
    depth = std::max<std::int64_t>(1, ceil_div(K, count));
  }
};

// How a whole K x N matrix B lies in panels: slice by slice, and in a slice panel by panel.
template <Isa I, class T>
struct ColumnPanels {
  using Tile = GemmTile<I, T>;
  std::int64_t N, K, panels;
  GemmSlices<I, T> slices;

  ColumnPanels(std::int64_t columns, std::int64_t depth)
      : N(columns), K(depth), panels(ceil_div(columns, Tile::kCols)), slices(depth) {}
  std::int64_t panel_size() const { return slices.depth * Tile::kCols; }
  std::int64_t size() const { return slices.count * panels * panel_size(); }
  std::int64_t offset(std::int64_t slice, std::int64_t panel) const { return (slice * panels + panel) * panel_size(); }

  // pack as gemm_core's pack_b.
  template <class Pack>
  void fill(T* data, const Pack& pack) const {
    parallel_for(slices.count * panels, [&](std::int64_t task) {
      const std::int64_t col0 = task % panels * Tile::kCols;
      const std::int64_t k0 = task / panels * slices.depth;
      pack(data + task * panel_size(), col0, std::min<std::int64_t>(Tile::kCols, N - col0), k0,
           std::min(slices.depth, K - k0));
    });
  }
};

// The product of an M x K and a K x N matrix.
//   pack_a(panel, row0, rows, k0, depth)  writes element (row0 + i, k0 + k) to panel[i * kPanelStride + k]
//   pack_b(panel, col0, cols, k0, depth)  writes element (k0 + k, col0 + j) to panel[k * kCols + j] for j <
//   kCols,
//                                         zero for j >= cols
//   finish(row0, col0, rows, cols, tile, tile_row)  takes a finished tile; called once for each of C's
//   elements
// `c`, if given, is an M x N array of T to hold partial sums (C itself, where its dtype is T); scratch
// otherwise. Where `left` has A, it is not packed.
template <Isa I, class T, class P = Product, class PackA, class PackB, class Finish>
void gemm_core(std::int64_t M, std::int64_t N, std::int64_t K, const PackA& pack_a, const PackB& pack_b,
               const Finish& finish, T* c = nullptr, std::int64_t c_row = 0, const RowsInPlace<T>& left = {}) {
  using Tile = GemmTile<I, T>;
  const ColumnPanels<I, T> whole(N, K);
  const std::int64_t outer_rows = std::min(M, Tile::kOuterRows);
  const std::int64_t outer_cols = std::min(N, Tile::kOuterCols);
  const std::int64_t slices = whole.slices.count, slice = whole.slices.depth;
  const std::int64_t row_panels = left.data ? 0 : ceil_div(outer_rows, Tile::kRows);
  const std::int64_t col_panels = ceil_div(outer_cols, Tile::kCols);
  const std::int64_t a_panel = Tile::kRows * Tile::kPanelStride;
  const std::int64_t b_panel = whole.panel_size();
  const Scratch<T> a(static_cast<std::size_t>(row_panels * a_panel));
  const Scratch<T> b(static_cast<std::size_t>(col_panels * b_panel));
  const bool own_c = c != nullptr;
  const Scratch<T> sums(own_c ? 0 : static_cast<std::size_t>(outer_rows * outer_cols));

  for (std::int64_t n0 = 0; n0 < N; n0 += outer_cols) {
    const std::int64_t cols = std::min(outer_cols, N - n0);
    for (std::int64_t m0 = 0; m0 < M; m0 += outer_rows) {
      const std::int64_t rows = std::min(outer_rows, M - m0);
      T* block = own_c ? c + m0 * c_row + n0 : sums.data();
      const std::int64_t block_row = own_c ? c_row : outer_cols;
      for (std::int64_t k0 = 0; k0 == 0 || k0 < K; k0 += slice) {
        const std::int64_t depth = std::min(slice, K - k0);
        const bool last = k0 + depth >= K;
        // The previous block's B is still packed when only the rows have moved on and K is one slice.
        const std::int64_t pack_cols = m0 == 0 || slices > 1 ? ceil_div(cols, Tile::kCols) : 0;
        const std::int64_t pack_rows = left.data ? 0 : ceil_div(rows, Tile::kRows);
        // Each task packs its share of both, so that a thread finds in its cache much of what it multiplies.
        const std::int64_t shares = (pack_rows + pack_cols + 3) / 4;
        parallel_for(shares, [&](std::int64_t share) {
          for (std::int64_t p = pack_rows * share / shares; p < pack_rows * (share + 1) / shares; ++p) {
            const std::int64_t m = p * Tile::kRows;
            pack_a(a.data() + p * a_panel, m0 + m, std::min<std::int64_t>(Tile::kRows, rows - m), k0, depth);
          }
          for (std::int64_t p = pack_cols * share / shares; p < pack_cols * (share + 1) / shares; ++p) {
            const std::int64_t n = p * Tile::kCols;
            pack_b(b.data() + p * b_panel, n0 + n, std::min<std::int64_t>(Tile::kCols, cols - n), k0, depth);
          }
        });
        const std::int64_t tasks_down = ceil_div(rows, Tile::kTaskRows);
        const std::int64_t tasks_across = ceil_div(cols, Tile::kTaskCols);
        parallel_for(tasks_down * tasks_across, [&](std::int64_t task) {
          const auto [m_begin, m_end] = share_of(rows, Tile::kRows, task / tasks_across, tasks_down);
          const auto [n_begin, n_end] = share_of(cols, Tile::kCols, task % tasks_across, tasks_across);
          const T* own =
              left.data ? left.data + (m0 + m_begin) * left.row + k0 : a.data() + m_begin / Tile::kRows * a_panel;
          gemm_block<I, false, P>(m_end - m_begin, n_end - n_begin, depth, own,
                                  left.data ? left.row : Tile::kPanelStride, b.data() + n_begin / Tile::kCols * b_panel,
                                  b_panel, block + m_begin * block_row + n_begin, block_row, k0 > 0,
                                  [&](std::int64_t m, std::int64_t n, int height, std::int64_t width, T* tile) {
                                    if (last)
                                      finish(m0 + m_begin + m, n0 + n_begin + n, height, width, tile, block_row);
                                  });
        });
      }
    }
  }
}

// to[j * to_row + i] = element j of line i, which fill(line, i, j0, n) gives in parts.
template <Isa I, class Fill>
void transpose_lines(float* to, std::int64_t to_row, std::int64_t lines, std::int64_t length, const Fill& fill) {
  constexpr std::int64_t kWidth = 64;
  float part[4 * kWidth];
  for (std::int64_t j0 = 0; j0 < length; j0 += kWidth) {
    const std::int64_t width = std::min(kWidth, length - j0);
    for (std::int64_t i = 0; i < lines; i += 4) {
      const std::int64_t height = std::min<std::int64_t>(4, lines - i);
      for (std::int64_t r = 0; r < height; ++r) fill(part + r * kWidth, i + r, j0, width);
      std::int64_t j = 0;
      for (; height == 4 && j + 4 <= width; j += 4) {
        transpose_4x4<I>(part + j, kWidth, to + (j0 + j) * to_row + i, to_row);
      }
      for (; j < width; ++j) {
        for (std::int64_t r = 0; r < height; ++r) to[(j0 + j) * to_row + i + r] = part[r * kWidth + j];
      }
    }
  }
}

// A strided matrix as an operand: element (i, k) at data[i * row + k * col].
template <Isa I, class S>
struct StridedMatrix {
  using T = Accumulator<S>;
  using Tile = GemmTile<I, T>;
  const S* data;
  std::int64_t row, col;

  RowsInPlace<T> in_place() const {
    if constexpr (std::is_same_v<S, T>) {
      if (col == 1 && RowsInPlace<T>::fit(row, Tile::kRows)) return {data, row};
    }
    return {};
  }

  // As gemm_core's pack_a.
  void pack_rows(T* panel, std::int64_t row0, std::int64_t rows, std::int64_t k0, std::int64_t depth) const {
    const S* source = data + row0 * row + k0 * col;
    if (row == 1 && col != 1) {
      transpose(panel, Tile::kPanelStride, source, col, depth, rows);
    } else {
      copy_rows(panel, Tile::kPanelStride, source, row, col, rows, depth);
    }
  }

  // As gemm_core's pack_b, of the transposed matrix: element (k, j) is this matrix's (j, k).
  void pack_cols(T* panel, std::int64_t col0, std::int64_t cols, std::int64_t k0, std::int64_t depth) const {
    const S* source = data + col0 * row + k0 * col;
    if (cols < Tile::kCols) std::memset(panel, 0, static_cast<std::size_t>(depth * Tile::kCols) * sizeof(T));
    if (col == 1 && row != 1) {
      transpose(panel, Tile::kCols, source, row, cols, depth);
    } else {
      copy_rows(panel, Tile::kCols, source, col, row, depth, cols);
    }
  }

  // to[j * to_row + i] = from[i * from_row + j] for i < rows, j < cols
  static void transpose(T* to, std::int64_t to_row, const S* from, std::int64_t from_row, std::int64_t rows,
                        std::int64_t cols) {
    constexpr std::int64_t kWidth = 64;
    T wide[4 * kWidth];
    for (std::int64_t j0 = 0; j0 < cols; j0 += kWidth) {
      const std::int64_t width = std::min(kWidth, cols - j0);
      std::int64_t i = 0;
      for (; i + 4 <= rows; i += 4) {
        const T* source;
        std::int64_t source_row;
        if constexpr (std::is_same_v<S, T>) {
          source = from + i * from_row + j0;
          source_row = from_row;
        } else {
          copy_rows(wide, kWidth, from + i * from_row + j0, from_row, 1, 4, width);
          source = wide;
          source_row = kWidth;
        }
        std::int64_t j = 0;
        for (; j + 4 <= width; j += 4) {
          transpose_4x4<I>(source + j, source_row, to + (j0 + j) * to_row + i, to_row);
        }
        for (; j < width; ++j) {
          for (int r = 0; r < 4; ++r) to[(j0 + j) * to_row + i + r] = source[r * source_row + j];
        }
      }
      for (; i < rows; ++i) {
        for (std::int64_t j = j0; j < j0 + width; ++j) to[j * to_row + i] = static_cast<T>(from[i * from_row + j]);
      }
    }
  }

 private:
  // to[i * to_row + j] = from[i * from_row + j * from_col]
  static void copy_rows(T* to, std::int64_t to_row, const S* from, std::int64_t from_row, std::int64_t from_col,
                        std::int64_t rows, std::int64_t cols) {
    using V = Vec<T, I>;
    constexpr std::int64_t kAhead = 4;  // rows, whose starts are not foreseen by the processor
    for (std::int64_t i = 0; i < rows; ++i, to += to_row, from += from_row) {
      std::int64_t j = 0;
      if (from_col == 1) {
        for (; j + V::kLanes <= cols; j += V::kLanes) {
          __builtin_prefetch(from + kAhead * from_row + j);
          V::load(from + j).store(to + j);
        }
      }
      for (; j < cols; ++j) to[j] = static_cast<T>(from[j * from_col]);
    }
  }
};

}  // namespace drupe::cpu
