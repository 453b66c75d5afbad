// Sums of rows, column block by column block in registers. A source says what its i-th row is:
//   const S* at(i)               where it lies
//   Row row(i)                   the same, and with what factor; row.data is null for one that is left out
//   V load(row, column, lanes)   these of its elements, times the factor
//   size, straddles              how many rows it has, and whether they may cross lines (straddles_lines)
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "cpu/lanes.h"

namespace drupe::cpu {

// Bytes that a walk over scattered rows keeps in flight: enough to cover the memory's latency, a quarter of the first
// cache.
inline constexpr std::int64_t kPrefetchBytes = 12288;
// Where both are asked for: into the first cache, and before that into the second, which waits for more lines at once.
inline constexpr std::int64_t kNearBytes = 6144, kFarBytes = 16384;
// Each of the rows ahead lies in a page of its own: more of them than half of a first-level TLB lose their entries
// again before they are read.
inline constexpr std::int64_t kFarthestRow = 40;
inline constexpr std::int64_t kCacheLine = 64;

// Whether some of the rows from `base` on, `stride_bytes` apart, have bytes in one line more than they need.
template <Isa I>
DRUPE_INLINE bool straddles_lines(const void* base, std::int64_t stride_bytes, std::int64_t row_bytes) {
  const auto size = std::bit_ceil(static_cast<std::uint64_t>(std::clamp<std::int64_t>(row_bytes, 1, kCacheLine)));
  return ((reinterpret_cast<std::uintptr_t>(base) | static_cast<std::uintptr_t>(stride_bytes)) & (size - 1)) != 0;
}

// How many rows of so many bytes are in flight.
constexpr std::int64_t rows_ahead(std::int64_t row_bytes, std::int64_t in_flight, std::int64_t most = kFarthestRow) {
  return std::clamp<std::int64_t>(in_flight / std::max(kCacheLine, row_bytes), 2, most);
}

// Asks for rows of so many bytes ahead of the i-th of `size`, which lie at(i), or of the last.
template <std::int64_t Bytes, std::int64_t Most = kFarthestRow, class At>
DRUPE_INLINE void prefetch_ahead(const At& at, std::int64_t i, std::int64_t size, bool straddles) {
  constexpr std::int64_t kNear = rows_ahead(Bytes, kNearBytes, Most / 2), kFar = rows_ahead(Bytes, kFarBytes, Most);
  const auto* near = reinterpret_cast<const char*>(at(i + kNear < size ? i + kNear : size - 1));
  const auto* far = reinterpret_cast<const char*>(at(i + kFar < size ? i + kFar : size - 1));
#pragma GCC unroll 8
  for (std::int64_t byte = 0; byte < Bytes; byte += kCacheLine) {
    __builtin_prefetch(near + byte);
    __builtin_prefetch(far + byte, 0, 2);
  }
  if (straddles) {
    __builtin_prefetch(near + Bytes - 1);
    __builtin_prefetch(far + Bytes - 1, 0, 2);
  }
}

// For rows whose size is only known at run time; of long ones the hardware follows the rest by itself.
struct PrefetchPlan {
  std::int64_t ahead, bytes;
  bool straddles;
  template <Isa I>
  DRUPE_INLINE static PrefetchPlan make(const void* base, std::int64_t stride_bytes, std::int64_t row_bytes,
                                        std::int64_t in_flight = kPrefetchBytes) {
    const std::int64_t bytes = std::clamp<std::int64_t>(row_bytes, 1, 8 * kCacheLine);
    return {rows_ahead(bytes, in_flight), bytes, straddles_lines<I>(base, stride_bytes, row_bytes)};
  }
  DRUPE_INLINE void operator()(const void* row) const {
    const auto* from = static_cast<const char*>(row);
    for (std::int64_t byte = 0; byte < bytes; byte += kCacheLine) __builtin_prefetch(from + byte);
    if (straddles) __builtin_prefetch(from + bytes - 1);
  }
};

// finish(column, sum, lanes) takes each of N registers of the sum of rows [begin, end). What comes after `end` is asked
// for as well: it is the next sum's.
template <int N, class V, class Source, class Lanes, class Finish>
DRUPE_INLINE void sum_columns(const Source& source, std::int64_t begin, std::int64_t end, std::int64_t column,
                              Lanes lanes, const Finish& finish) {
  constexpr std::int64_t kBytes = N * V::kLanes * static_cast<std::int64_t>(sizeof(*source.at(0)));
  V sum[N];
#pragma GCC unroll 8
  for (int k = 0; k < N; ++k) sum[k] = V::zero();
  for (std::int64_t i = begin; i < end; ++i) {
    prefetch_ahead<kBytes>([&](std::int64_t r) { return source.at(r) + column; }, i, source.size, source.straddles);
    const auto row = source.row(i);
    if (!row.data) continue;
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) sum[k] = sum[k] + source.load(row, column + k * V::kLanes, lanes);
  }
#pragma GCC unroll 8
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
