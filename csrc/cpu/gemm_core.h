// What all blocked products share: the register tile, its microkernel, and how operands lie in panels.
//
// B's panel: kCols columns, row k after row k. A's rows lie packed or as they are, contiguous along k; or in panels by
// depth, kRows elements for each k. A microkernel keeps a kRows x kCols tile of C in registers, reads a B row as
// vectors, and broadcasts A's elements. Loads per k: kRows broadcasts and kVectors vectors for kVectors kRows FMAs.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "core/caches.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/simd.h"
#include "cpu/simd_transpose.h"

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
  static constexpr std::int64_t kPanelSize = kRows * kPanelStride;  // of A
  static constexpr std::int64_t kTaskCols = 2048 / kCols * kCols;
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

// What a microkernel fetches into L2 while it runs, a line at each k: of requests that come all at once the processor
// drops most.
class Fetch {
 public:
  struct Lines {
    const char* from;
    std::int64_t step, count;  // bytes from line to line
  };

  template <class T>
  DRUPE_INLINE void add_lines(const T* from, std::int64_t step, std::int64_t count) {
    lines_[size_] = {reinterpret_cast<const char*>(from), step * static_cast<std::int64_t>(sizeof(T)), count};
    if (size_ + 1 < kMost) ++size_;
  }
  // What all other steps of the product fetch, to be added last, and always.
  template <class T>
  DRUPE_INLINE void add_rest(const T* from, std::int64_t step) {
    add_lines(from, step, std::numeric_limits<std::int64_t>::max());
  }
  // `rows` rows of `width` elements, `row` apart, wherever in a line they begin.
  template <class T>
  DRUPE_INLINE void add_rows(const T* from, std::int64_t row, std::int64_t rows, std::int64_t width) {
    constexpr std::int64_t kLine = 64;
    const char* first = reinterpret_cast<const char*>(from);
    const bool alike = row * static_cast<std::int64_t>(sizeof(T)) % kLine == 0;
    const char* last = reinterpret_cast<const char*>(from + width) + (alike ? 0 : kLine - 1);
    for (first -= reinterpret_cast<std::uintptr_t>(first) % kLine; first < last; first += kLine) {
      add_lines(first, row * static_cast<std::int64_t>(sizeof(T)), rows);
    }
  }

  DRUPE_INLINE const Lines* begin() const { return lines_; }

 private:
  static constexpr int kMost = 24;
  Lines lines_[kMost];
  int size_ = 0;
};

// The elements of A at one k for kRows rows: `row` apart, or neighbours.
template <class T, int kRows, bool kApart>
class LeftColumn {
 public:
  DRUPE_INLINE LeftColumn(const T* a, std::int64_t row) : row_(row) {
#pragma GCC unroll 8
    for (int i = 0; i < kPointers; ++i) at_[i] = a + i * kReach * row;
  }
  DRUPE_INLINE const T* at(int i) const { return kApart ? at_[i / kReach] + i % kReach * row_ : at_[0] + i; }
  DRUPE_INLINE void advance(std::int64_t elements) {
#pragma GCC unroll 8
    for (int i = 0; i < kPointers; ++i) {
      at_[i] += elements;
      asm("" : "+r"(at_[i]));  // else the compiler derives one from another, in the loop
    }
  }

 private:
  static constexpr int kReach = 3;  // rows that a pointer and one stride address: 0, 1 and 2 times
  static constexpr int kPointers = kApart ? (kRows + kReach - 1) / kReach : 1;
  const T* at_[kPointers];
  std::int64_t row_;
};

// c[i][j] (+)= sum over k of a[i][k] b[k][j] for a whole register tile.
template <Isa I, class T, int kRows, int kDepthStep, class P>
[[gnu::noinline]] void gemm_microkernel(std::int64_t depth, const T* a, std::int64_t a_row, const T* b, T* c,
                                        std::int64_t c_row, bool accumulate, const Fetch& fetch) {
  using Tile = GemmTile<I, T>;
  using V = Vec<T, I>;
  constexpr int kLine = 64 / sizeof(T);
  V sum[kRows][Tile::kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Tile::kVectors; ++j) sum[i][j] = V::zero();
  }
  LeftColumn<T, kRows, kDepthStep == 1> column(a, a_row);
  const Fetch::Lines* lines = fetch.begin();
  const char* ahead = lines->from;
  std::int64_t step = lines->step, remaining = lines->count;
  for (std::int64_t k = 0; k < depth; ++k) {
    V row[Tile::kVectors];
    __builtin_prefetch(ahead, 0, 2);
    ahead += step;
    if (__builtin_expect(--remaining == 0, false)) {  // a branch: of nested loops GCC keeps A's pointers in memory
      ++lines;
      ahead = lines->from;
      step = lines->step;
      remaining = lines->count;
    }
#pragma GCC unroll 4
    for (int j = 0; j < Tile::kCols; j += kLine) __builtin_prefetch(b + (k + 16) * Tile::kCols + j);
#pragma GCC unroll 4
    for (int j = 0; j < Tile::kVectors; ++j) row[j] = V::load(b + k * Tile::kCols + j * V::kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const V left = V::set(*column.at(i));
#pragma GCC unroll 4
      for (int j = 0; j < Tile::kVectors; ++j) sum[i][j] = P::add(left, row[j], sum[i][j]);
    }
    column.advance(kDepthStep);
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
// i + k * kDepthStep.
template <Isa I, class T, int kDepthStep, class P, int kRows = GemmTile<I, T>::kRows>
void gemm_tile(int rows, std::int64_t depth, const T* a, std::int64_t a_row, const T* b, T* c, std::int64_t c_row,
               bool accumulate, const Fetch& fetch) {
  if (rows == kRows) {
    gemm_microkernel<I, T, kRows, kDepthStep, P>(depth, a, a_row, b, c, c_row, accumulate, fetch);
  } else if constexpr (kRows > 1) {
    gemm_tile<I, T, kDepthStep, P, kRows - 1>(rows, depth, a, a_row, b, c, c_row, accumulate, fetch);
  }
}

struct Ignore {
  void operator()(auto&&...) const {}
};

// C (+)= A B for rows x cols of C, panel of B by panel or, where all of them stay in L2 and A lies dense, row of tiles
// by row, so that A is read and C written in order. B's panels follow one another at b_panel; A's rows lie a_row apart,
// packed or not, or with kByDepth in panels by depth, kRows * a_row apart. Before each tile, start(fetch, row, col,
// height, width) may add to what is fetched meanwhile; after it, done(row, col, height, width, tile) is called. Without
// c a tile lies, until done returns, in a place of its own with rows of kCols.
template <Isa I, bool kByDepth = false, class P = Product, class T, class Done, class Start = Ignore>
void gemm_block(std::int64_t rows, std::int64_t cols, std::int64_t depth, const T* a, std::int64_t a_row, const T* b,
                std::int64_t b_panel, T* c, std::int64_t c_row, bool accumulate, const Done& done,
                const Start& start = {}) {
  using Tile = GemmTile<I, T>;
  constexpr int kDepthStep = kByDepth ? Tile::kRows : 1;
  alignas(64) T edge[Tile::kRows * Tile::kCols];
  const std::int64_t down = ceil_div(rows, Tile::kRows), across = ceil_div(cols, Tile::kCols);
  constexpr std::int64_t kLeastDown = 4;  // else B itself is what is waited for
  const bool by_rows = a_row == depth && down >= kLeastDown &&
                       across * b_panel * static_cast<std::int64_t>(sizeof(T)) <= caches().l2 / 2;
  // Each tile fetches its share of what comes next: a panel of B, or the rows of A below.
  const std::int64_t share = by_rows ? ceil_div(Tile::kRows, across) : ceil_div(Tile::kCols, down);
  std::int64_t i = 0, j = 0;
  std::int64_t &inner = by_rows ? j : i, &outer = by_rows ? i : j;
  while (i < down && j < across) {
    const std::int64_t m = i * Tile::kRows, n = j * Tile::kCols;
    const T* right = b + j * b_panel;
    const T* left = a + m * a_row;
    const int height = static_cast<int>(std::min<std::int64_t>(Tile::kRows, rows - m));
    const std::int64_t width = std::min<std::int64_t>(Tile::kCols, cols - n);
    T* tile = c ? c + m * c_row + n : edge;
    const T* after = by_rows ? left + Tile::kRows * a_row : right + b_panel;
    Fetch fetch;
    if (c) fetch.add_rows(tile, c_row, height, width);
    start(fetch, m, n, height, width);
    fetch.add_rest(after + inner * depth * share, share);
    if (width == Tile::kCols || !c) {
      gemm_tile<I, T, kDepthStep, P>(height, depth, left, a_row, right, tile, c ? c_row : Tile::kCols, accumulate,
                                     fetch);
    } else {
      const auto bytes = static_cast<std::size_t>(width) * sizeof(T);
      for (int r = 0; r < height && accumulate; ++r) std::memcpy(edge + r * Tile::kCols, tile + r * c_row, bytes);
      gemm_tile<I, T, kDepthStep, P>(height, depth, left, a_row, right, edge, Tile::kCols, accumulate, fetch);
      for (int r = 0; r < height; ++r) std::memcpy(tile + r * c_row, edge + r * Tile::kCols, bytes);
    }
    done(m, n, height, width, tile);
    if (++inner == (by_rows ? across : down)) inner = 0, ++outer;
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

// How a K x N matrix B, or the given slices of it, lies in panels: slice by slice, and in a slice panel by panel. Its
// first column may be the col0th of a larger matrix.
template <Isa I, class T>
struct ColumnPanels {
  using Tile = GemmTile<I, T>;
  std::int64_t N, K, panels, col0 = 0;
  GemmSlices<I, T> slices;
  std::int64_t first = 0, last;  // slices

  ColumnPanels(std::int64_t columns, std::int64_t depth)
      : N(columns), K(depth), panels(ceil_div(columns, Tile::kCols)), slices(depth), last(slices.count - 1) {}
  std::int64_t panel_size() const { return slices.depth * Tile::kCols; }
  std::int64_t size() const { return (last - first + 1) * panels * panel_size(); }
  std::int64_t offset(std::int64_t slice, std::int64_t panel) const {
    return ((slice - first) * panels + panel) * panel_size();
  }

  // pack(panel, col0, cols, k0, depth) writes element (k0 + k, col0 + j) to panel[k * kCols + j] for j < kCols, zero
  // for j >= cols.
  template <class Pack>
  void fill(T* data, const Pack& pack) const {
    parallel_for((last - first + 1) * panels, [&](std::int64_t task) {
      const std::int64_t col = task % panels * Tile::kCols;
      const std::int64_t k0 = (first + task / panels) * slices.depth;
      pack(data + task * panel_size(), col0 + col, std::min<std::int64_t>(Tile::kCols, N - col), k0,
           std::min(slices.depth, K - k0));
    });
  }
};

// to[j * to_row + i] = element j of line i, which fill(line, i, j0, n) gives in parts.
template <Isa I, class Fill>
void transpose_lines(float* to, std::int64_t to_row, std::int64_t lines, std::int64_t length, const Fill& fill) {
  constexpr std::int64_t kWidth = 64, kLines = 16;
  float part[kLines * kWidth];
  for (std::int64_t j0 = 0; j0 < length; j0 += kWidth) {
    const std::int64_t width = std::min(kWidth, length - j0);
    for (std::int64_t i = 0; i < lines; i += kLines) {
      const std::int64_t height = std::min(kLines, lines - i);
      for (std::int64_t r = 0; r < height; ++r) fill(part + r * kWidth, i + r, j0, width);
      transpose<I>(part, kWidth, to + j0 * to_row + i, to_row, height, width);
    }
  }
}

inline constexpr std::int64_t kLinesAhead = 8;  // to fetch while lines of a matrix are packed

// Calls f(row, where it lies in panels by depth, whether a panel's elements may be moved by whole vectors: those beyond
// it exist in the source, and the next k overwrites them in the panel) for each panel of `rows` rows.
template <class Tile, int kLanes, class F>
DRUPE_INLINE void for_panels_by_depth(std::int64_t rows, const F& f) {
  for (std::int64_t m = 0, panel = 0; m < rows; m += Tile::kRows, panel += Tile::kPanelSize) {
    f(m, panel, m + round_up(Tile::kRows, kLanes) <= rows);
  }
}

// A matrix as the left operand, in any of three forms:
//   in_place()                                   says whether and where A's rows may be read as they lie
//   by_depth(), pack_by_depth(panels, row0, rows, k0, depth)  writes element (row0 + i, k0 + k) of all panels of rows
//                                                to panels[i / kRows * kPanelSize + k * kRows + i % kRows]
//   pack_rows(panel, row0, rows, k0, depth)      writes element (row0 + i, k0 + k) to panel[i * kPanelStride + k] of
//                                                one panel
// This one has the last alone, and the rows in place if they are given.
template <class T, class Pack>
struct PackedRows {
  Pack pack_rows;
  RowsInPlace<T> lying = {};
  RowsInPlace<T> in_place() const { return lying; }
};

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

  void pack_rows(T* panel, std::int64_t row0, std::int64_t rows, std::int64_t k0, std::int64_t depth) const {
    copy_rows(panel, Tile::kPanelStride, data + row0 * row + k0 * col, row, col, rows, depth);
  }

  bool by_depth() const { return row == 1 && col != 1; }
  void pack_by_depth(T* panels, std::int64_t row0, std::int64_t rows, std::int64_t k0, std::int64_t depth) const {
    using V = Vec<T, I>;
    const S* source = data + row0 + k0 * col;
    for (std::int64_t k = 0; k < depth; ++k, source += col, panels += Tile::kRows) {
      for_panels_by_depth<Tile, V::kLanes>(rows, [&](std::int64_t m, std::int64_t panel, bool whole) {
        __builtin_prefetch(source + kLinesAhead * col + m);
        if (whole) {
#pragma GCC unroll 4
          for (int i = 0; i < Tile::kRows; i += V::kLanes) V::load(source + m + i).store(panels + panel + i);
        } else {
          const std::int64_t height = std::min<std::int64_t>(Tile::kRows, rows - m);
          for (std::int64_t i = 0; i < height; ++i) panels[panel + i] = static_cast<T>(source[m + i]);
        }
      });
    }
  }

  // As ColumnPanels::fill's pack, of the transposed matrix: element (k, j) is this matrix's (j, k).
  void pack_cols(T* panel, std::int64_t col0, std::int64_t cols, std::int64_t k0, std::int64_t depth) const {
    const S* source = data + col0 * row + k0 * col;
    if (cols < Tile::kCols) std::memset(panel, 0, static_cast<std::size_t>(depth * Tile::kCols) * sizeof(T));
    if (col == 1 && row != 1) {
      transposed(panel, Tile::kCols, source, row, cols, depth);
    } else {
      copy_rows(panel, Tile::kCols, source, col, row, depth, cols);
    }
  }

  // to[j * to_row + i] = from[i * from_row + j] for i < rows, j < cols
  static void transposed(T* to, std::int64_t to_row, const S* from, std::int64_t from_row, std::int64_t rows,
                         std::int64_t cols) {
    if constexpr (std::is_same_v<S, T>) {
      transpose<I>(from, from_row, to, to_row, rows, cols);
    } else {
      constexpr std::int64_t kWidth = 64, kLines = 16;
      T wide[kLines * kWidth];
      for (std::int64_t j = 0; j < cols; j += kWidth) {
        const std::int64_t width = std::min(kWidth, cols - j);
        for (std::int64_t i = 0; i < rows; i += kLines) {
          const std::int64_t height = std::min(kLines, rows - i);
          copy_rows(wide, kWidth, from + i * from_row + j, from_row, 1, height, width);
          transpose<I>(wide, kWidth, to + j * to_row + i, to_row, height, width);
        }
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
