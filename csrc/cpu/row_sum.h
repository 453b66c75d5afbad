// Sums of rows, column block by column block in registers. A source says what its i-th row is:
//   Row row(i)                       where it lies, and with what factor; row.data is null for one that is left out
//   V load(row, column, lanes)       these of its elements, times the factor
//   void prefetch(i)                 asks for what is read a while later
#pragma once

#include <cstdint>

#include "cpu/lanes.h"

namespace drupe::cpu {

// Bytes that a walk over scattered rows keeps in flight: enough to cover the memory's latency.
inline constexpr std::int64_t kPrefetchBytes = 2048;
inline constexpr std::int64_t kCacheLine = 64;

// How many rows ahead to ask for, and how many lines of each; beyond those the hardware follows by itself.
struct PrefetchPlan {
  std::int64_t ahead, lines;
  template <Isa I>
  DRUPE_INLINE static PrefetchPlan make(std::int64_t row_bytes) {
    const std::int64_t bytes = row_bytes < 1 ? 1 : row_bytes;
    const std::int64_t ahead = kPrefetchBytes / bytes;
    const std::int64_t lines = (bytes + kCacheLine - 1) / kCacheLine;
    return {ahead < 2 ? 2 : ahead > 32 ? 32 : ahead, lines > 8 ? 8 : lines};
  }
  DRUPE_INLINE void operator()(const void* row) const {
    for (std::int64_t line = 0; line < lines; ++line) {
      __builtin_prefetch(static_cast<const char*>(row) + line * kCacheLine);
    }
  }
};

// finish(column, sum, lanes) takes each of N registers of the sum of rows [begin, end).
template <int N, class V, class Source, class Lanes, class Finish>
DRUPE_INLINE void sum_columns(const Source& source, std::int64_t begin, std::int64_t end, std::int64_t column,
                              Lanes lanes, const Finish& finish) {
  V sum[N];
  for (int k = 0; k < N; ++k) sum[k] = V::zero();
  for (std::int64_t i = begin; i < end; ++i) {
    if (column == 0) source.prefetch(i);
    const auto row = source.row(i);
    if (!row.data) continue;
    for (int k = 0; k < N; ++k) sum[k] = sum[k] + source.load(row, column + k * V::kLanes, lanes);
  }
  for (int k = 0; k < N; ++k) finish(column + k * V::kLanes, sum[k], lanes);
}

template <class V, class Source, class Finish>
DRUPE_INLINE void sum_rows_in_order(const Source& source, std::int64_t begin, std::int64_t end, std::int64_t width,
                                    const Finish& finish) {
  constexpr int kLanes = V::kLanes;
  std::int64_t column = 0;
  const auto whole = [&]<int N>(std::integral_constant<int, N>) {
    sum_columns<N, V>(source, begin, end, column, AllLanes{}, finish);
    column += N * kLanes;
  };
  while (column + 8 * kLanes <= width) whole(std::integral_constant<int, 8>());
  if (column + 4 * kLanes <= width) whole(std::integral_constant<int, 4>());
  if (column + 2 * kLanes <= width) whole(std::integral_constant<int, 2>());
  if (column + kLanes <= width) whole(std::integral_constant<int, 1>());
  const FirstLanes rest{static_cast<int>(width - column)};
  if (rest.count > 0) sum_columns<1, V>(source, begin, end, column, rest, finish);
}

}  // namespace drupe::cpu
