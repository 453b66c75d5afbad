// A matrix product with few rows in A, as in decoding: what counts is that B is read once, as it lies, and in order.
// A is gathered first, and stays in the caches. Each task makes some columns of the result.
#pragma once

#include <algorithm>
#include <bit>

#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/gemm_bf16.h"
#include "cpu/lanes.h"

namespace drupe::cpu {

inline constexpr std::int64_t kFewRows = 16;  // at most

template <Isa I>
struct FewRows {
  static constexpr int kHeight = I == Isa::avx512 ? 8 : 4;  // rows of the result in registers
  static constexpr int kDepth = 8;                          // rows of B that are read side by side
  // Where what is read next is fetched into. In L1 rows a power of two apart would meet in the same sets; a tall
  // block, bound by its arithmetic, rather has it there.
  static constexpr int nearness(int height) { return height <= 4 ? 2 : 3; }
  // Registers for sums: columns of the result where B's rows are contiguous, in vectors, a cache line of B for few
  // rows; rows of B where k is.
  template <class S>
  static constexpr int vectors(int height) {
    constexpr int kLine = 64 / static_cast<int>(sizeof(S)) / Vec<Accumulator<S>, I>::kLanes;
    return height <= 2 ? std::clamp(kLine, 1, 4) : 2;
  }
  static constexpr int lines(int height) { return height == 1 ? kHeight : height <= 4 ? 4 : 2; }
  // Whether rows or lines of B are read one after another, which suits short ones where nothing is to be shared.
  static bool singly(std::int64_t height, std::int64_t bytes) { return height == 1 && bytes <= 2048; }
};

// A copy of A's rows as T, contiguous along k; the padding keeps them out of one cache set.
template <class T>
struct GatheredRows {
  std::int64_t row;
  Scratch<T> data;

  template <class S>
  GatheredRows(const S* from, std::int64_t from_row, std::int64_t from_col, std::int64_t M, std::int64_t K)
      : row(K + 64 / static_cast<std::int64_t>(sizeof(T))), data(static_cast<std::size_t>(M * row)) {
    for (std::int64_t i = 0; i < M; ++i) {
      const S* source = from + i * from_row;
      T* target = data.data() + i * row;
      if (from_col == 1) {
        for (std::int64_t k = 0; k < K; ++k) target[k] = static_cast<T>(source[k]);  // a loop of vectors
      } else {
        for (std::int64_t k = 0; k < K; ++k) target[k] = static_cast<T>(source[k * from_col]);
      }
    }
  }
};

// y[i][j] (+)= sum over k < depth of a[i][k] b[k][j], B's rows contiguous. What lies `ahead` is fetched.
template <Isa I, int kHeight, class S, class T>
void add_outer_products(const T* a, std::int64_t a_row, const S* b, std::int64_t b_row, int depth, std::int64_t cols,
                        T* y, std::int64_t y_row, bool accumulate, std::int64_t ahead) {
  using V = Vec<T, I>;
  constexpr int kVectors = FewRows<I>::template vectors<S>(kHeight);
  const auto run = [&](std::int64_t j, auto part, auto... n) {
    constexpr int kPart = decltype(part)::value;
    V sum[kHeight][kPart];
#pragma GCC unroll 8
    for (int i = 0; i < kHeight; ++i) {
#pragma GCC unroll 8
      for (int c = 0; c < kPart; ++c) {
        sum[i][c] = accumulate ? V::load(y + i * y_row + j + c * V::kLanes, n...) : V::zero();
      }
    }
    for (int k = 0; k < depth; ++k) {
      V row[kPart];
#pragma GCC unroll 8
      for (int c = 0; c < kPart; ++c) {
        row[c] = V::load(b + k * b_row + j + c * V::kLanes, n...);
        __builtin_prefetch(b + k * b_row + ahead + j + c * V::kLanes, 0, FewRows<I>::nearness(kHeight));
      }
#pragma GCC unroll 8
      for (int i = 0; i < kHeight; ++i) {
        const V left = V::set(a[i * a_row + k]);
#pragma GCC unroll 8
        for (int c = 0; c < kPart; ++c) sum[i][c] = fma(left, row[c], sum[i][c]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kHeight; ++i) {
#pragma GCC unroll 8
      for (int c = 0; c < kPart; ++c) sum[i][c].store(y + i * y_row + j + c * V::kLanes, n...);
    }
  };
  std::int64_t j = 0;
  for (; j + kVectors * V::kLanes <= cols; j += kVectors * V::kLanes) run(j, std::integral_constant<int, kVectors>());
  for (; j < cols; j += V::kLanes) {
    run(j, std::integral_constant<int, 1>(), static_cast<int>(std::min<std::int64_t>(V::kLanes, cols - j)));
  }
}

// How lines along k are multiplied: as accumulators, or in pairs of bfloat16 (see gemm_bf16.h).
template <Isa I, class S>
struct WideLines {
  using Left = Accumulator<S>;
  using V = Vec<Left, I>;
  static constexpr int kStep = V::kLanes;
  DRUPE_INLINE static V load(const auto* p, auto... n) { return V::load(p, n...); }
  DRUPE_INLINE static V add(V left, V right, V sum) { return fma(left, right, sum); }
};

template <Isa I>
struct PairedLines {
  using Left = BFloat16;
  using V = Vec<float, I>;
  static constexpr int kStep = 2 * V::kLanes;
  DRUPE_INLINE static V load(const BFloat16* p) { return V::load(reinterpret_cast<const float*>(p)); }
  DRUPE_INLINE static V load(const BFloat16* p, int n) { return V::load(reinterpret_cast<const float*>(p), n / 2); }
  DRUPE_INLINE static V add(V left, V right, V sum) { return PairProduct<I>::add(left, right, sum); }
};

// y[i][j] (+)= sum over k of a[i][k] b[j][k] for kLines lines of B, contiguous along k, in kTurns sums of several
// steps.
template <Isa I, class How, int kHeight, int kLines, int kTurns, class S, class T>
void dot_products(const typename How::Left* a, std::int64_t a_row, const S* b, std::int64_t b_line, std::int64_t depth,
                  T* y, std::int64_t y_row, bool accumulate) {
  using V = Vec<T, I>;
  V sum[kTurns][kHeight][kLines];
#pragma GCC unroll 4
  for (int t = 0; t < kTurns; ++t) {
#pragma GCC unroll 8
    for (int i = 0; i < kHeight; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kLines; ++j) sum[t][i][j] = V::zero();
    }
  }
  const auto step = [&](int turn, std::int64_t k, auto... n) __attribute__((always_inline)) {
    V line[kLines];
#pragma GCC unroll 8
    for (int j = 0; j < kLines; ++j) {
      line[j] = How::load(b + j * b_line + k, n...);
      // The next lines, which no prefetcher foresees.
      if constexpr (kLines > 1) __builtin_prefetch(b + (j + kLines) * b_line + k, 0, FewRows<I>::nearness(kHeight));
    }
#pragma GCC unroll 8
    for (int i = 0; i < kHeight; ++i) {
      const V left = How::load(a + i * a_row + k, n...);
#pragma GCC unroll 8
      for (int j = 0; j < kLines; ++j) sum[turn][i][j] = How::add(left, line[j], sum[turn][i][j]);
    }
  };
  std::int64_t k = 0;
  for (; k + kTurns * How::kStep <= depth; k += kTurns * How::kStep) {
#pragma GCC unroll 4
    for (int t = 0; t < kTurns; ++t) step(t, k + t * How::kStep);
  }
  for (; kTurns > 1 && k + How::kStep <= depth; k += How::kStep) step(0, k);
  if (k < depth) step(0, k, static_cast<int>(depth - k));
#pragma GCC unroll 8
  for (int i = 0; i < kHeight; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kLines; ++j) {
      V all = sum[0][i][j];
#pragma GCC unroll 4
      for (int t = 1; t < kTurns; ++t) all = all + sum[t][i][j];
      const T total = reduce_add(all);
      y[i * y_row + j] = accumulate ? y[i * y_row + j] + total : total;
    }
  }
}

// Calls f.operator()<height>() for 1 <= height <= kHeight.
template <Isa I, class F, int kHeight = FewRows<I>::kHeight>
void with_height(std::int64_t height, const F& f) {
  if (height >= kHeight) {
    f.template operator()<kHeight>();
  } else if constexpr (kHeight > 1) {
    with_height<I, F, kHeight - 1>(height, f);
  }
}

// Columns of y = a b where B's rows are contiguous: B (K x cols) is read kDepth rows at a time, side by side, or row by
// row, and kDepth rows ahead is fetched.
template <Isa I, class S, class T>
void few_rows_by_rows(std::int64_t M, std::int64_t cols, std::int64_t K, const T* a, std::int64_t a_row, const S* b,
                      std::int64_t b_row, T* y, std::int64_t y_row) {
  using Rows = FewRows<I>;
  const std::int64_t rows = Rows::singly(M, cols * std::int64_t{sizeof(S)}) ? 1 : Rows::kDepth;
  for (std::int64_t k = 0; k < K; k += rows) {
    const int depth = static_cast<int>(std::min<std::int64_t>(rows, K - k));
    for (std::int64_t i = 0; i < M; i += Rows::kHeight) {
      with_height<I>(M - i, [&]<int kHeight>() {
        add_outer_products<I, kHeight>(a + i * a_row + k, a_row, b + k * b_row, b_row, depth, cols, y + i * y_row,
                                       y_row, k > 0, Rows::kDepth * b_row);
      });
    }
  }
}

// The same where B's columns are contiguous, in slices of K of which A's rows stay in L1.
template <Isa I, class How, class S, class T>
void few_rows_by_lines(std::int64_t M, std::int64_t cols, std::int64_t K, const typename How::Left* a,
                       std::int64_t a_row, const S* b, std::int64_t b_col, T* y, std::int64_t y_row) {
  using Rows = FewRows<I>;
  const std::int64_t slice = (M == 1 ? 16384 : 4096) / static_cast<std::int64_t>(sizeof(typename How::Left));
  for (std::int64_t k = 0; k < K; k += slice) {
    const std::int64_t depth = std::min(slice, K - k);
    const bool singly = Rows::singly(M, depth * std::int64_t{sizeof(S)});
    for (std::int64_t i = 0; i < M; i += Rows::kHeight) {
      with_height<I>(M - i, [&]<int kHeight>() {
        constexpr int kLines = Rows::lines(kHeight);
        const auto run = [&]<int kCount, int kTurns = 1>(std::int64_t j) {
          dot_products<I, How, kHeight, kCount, kTurns>(a + i * a_row + k, a_row, b + j * b_col + k, b_col, depth,
                                                        y + i * y_row + j, y_row, k > 0);
        };
        std::int64_t j = 0;
        if constexpr (kHeight == 1) {
          for (; singly && j < cols; ++j) run.template operator()<1, 4>(j);
        }
        for (; j + kLines <= cols; j += kLines) run.template operator()<kLines>(j);
        for (; j < cols; ++j) run.template operator()<1>(j);
      });
    }
  }
}

// Runs columns(begin, count, tile, tile_row), which makes these columns of the result, in tasks of `grain`. finish as
// gemm_rows'; y, if given, is where sums lie.
template <class T, class Columns, class Finish>
void few_rows(std::int64_t M, std::int64_t N, std::int64_t grain, const Columns& columns, const Finish& finish, T* y,
              std::int64_t y_row) {
  parallel_ranges(N, grain, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t cols = end - begin;
    const Scratch<T> sums(y ? 0 : static_cast<std::size_t>(M * cols));
    T* tile = y ? y + begin : sums.data();
    const std::int64_t tile_row = y ? y_row : cols;
    columns(begin, cols, tile, tile_row);
    finish(0, begin, M, cols, tile, tile_row);
  });
}

// How many runs of B's rows to make tasks of, rather than of its columns, of which a task reads a piece of each row:
// from memory the runs stream in order from end to end. That pays unless B is small, or the sums of the runs are more
// than a small part of it.
inline std::int64_t count_slabs(std::int64_t M, std::int64_t N, std::int64_t K) {
  constexpr std::int64_t kTask = 131072;  // elements of B, about
  const auto tasks = static_cast<std::uint64_t>(N * K / kTask);
  const std::int64_t slabs = std::clamp<std::int64_t>(static_cast<std::int64_t>(std::bit_floor(tasks)), 8, 256);
  return tasks >= 4 && slabs * M * 16 <= K ? slabs : 1;
}

// few_rows_by_rows in such tasks, whose sums are added in order afterwards.
template <Isa I, class S, class T, class Finish>
void few_rows_by_slabs(std::int64_t M, std::int64_t N, std::int64_t K, std::int64_t slabs, const T* a,
                       std::int64_t a_row, const S* b, std::int64_t b_row, const Finish& finish, T* y,
                       std::int64_t y_row) {
  using V = Vec<T, I>;
  constexpr std::int64_t kDepth = FewRows<I>::kDepth;
  const std::int64_t depth = (K + slabs * kDepth - 1) / (slabs * kDepth) * kDepth;
  const std::int64_t used = (K + depth - 1) / depth;
  const Scratch<T> sums(static_cast<std::size_t>(used * M * N));
  parallel_for(used, [&](std::int64_t s) {
    few_rows_by_rows<I>(M, N, std::min(depth, K - s * depth), a + s * depth, a_row, b + s * depth * b_row, b_row,
                        sums.data() + s * M * N, N);
  });
  parallel_ranges(N, 4096 / M, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t cols = end - begin;
    const Scratch<T> own(y ? 0 : static_cast<std::size_t>(M * cols));
    T* tile = y ? y + begin : own.data();
    const std::int64_t tile_row = y ? y_row : cols;
    for (std::int64_t i = 0; i < M; ++i) {
      for_vectors<I, T>(cols, [&](std::int64_t j, auto lanes) {
        V total = load<V>(sums.data() + i * N + begin + j, lanes);
        for (std::int64_t s = 1; s < used; ++s) {
          total = total + load<V>(sums.data() + (s * M + i) * N + begin + j, lanes);
        }
        store(total, tile + i * tile_row + j, lanes);
      });
    }
    finish(0, begin, M, cols, tile, tile_row);
  });
}

// The product of an M x K matrix, K > 0, whose element (i, k) is a[i * a_row + k * a_col], and one whose element (k, j)
// is b[k * b_row + j * b_col], one of these two strides being 1.
template <Isa I, class S, class Finish>
void gemm_few_rows(std::int64_t M, std::int64_t N, std::int64_t K, const S* a, std::int64_t a_row, std::int64_t a_col,
                   const S* b, std::int64_t b_row, std::int64_t b_col, const Finish& finish, Accumulator<S>* y,
                   std::int64_t y_row) {
  using T = Accumulator<S>;
  constexpr std::int64_t kTask = 65536;  // elements of B, about, in a task of lines
  const std::int64_t lines = std::clamp<std::int64_t>((kTask / K + 7) / 8 * 8, 8, 512);
  const auto by_lines = [&]<class How>(How) {
    const GatheredRows<typename How::Left> rows(a, a_row, a_col, M, K);
    few_rows(
        M, N, lines,
        [&](std::int64_t begin, std::int64_t cols, T* tile, std::int64_t tile_row) {
          few_rows_by_lines<I, How>(M, cols, K, rows.data.data(), rows.row, b + begin * b_col, b_col, tile, tile_row);
        },
        finish, y, y_row);
  };
  if (b_row != 1) {
    const GatheredRows<T> rows(a, a_row, a_col, M, K);
    if (const std::int64_t slabs = count_slabs(M, N, K); slabs > 1) {
      few_rows_by_slabs<I>(M, N, K, slabs, rows.data.data(), rows.row, b, b_row, finish, y, y_row);
      return;
    }
    const std::int64_t grain = std::clamp<std::int64_t>((N / 8 + 63) / 64 * 64, 128, 512);
    few_rows(
        M, N, grain,
        [&](std::int64_t begin, std::int64_t cols, T* tile, std::int64_t tile_row) {
          few_rows_by_rows<I>(M, cols, K, rows.data.data(), rows.row, b + begin, b_row, tile, tile_row);
        },
        finish, y, y_row);
    return;
  }
  if constexpr (kPairs<I, S>) {
    if (K % 2 == 0 && has_bf16_dot<I>()) return by_lines(PairedLines<I>());
  }
  by_lines(WideLines<I, S>());
}

}  // namespace drupe::cpu
