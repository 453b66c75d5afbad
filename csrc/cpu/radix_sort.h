// A stable radix sort of contributions to rows, least significant digit first. Each pass counts digits per block of
// fixed size, turns the counts into places, and scatters block by block: parallel, and without atomics.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/simd.h"

namespace drupe::cpu {

// Row and payload in one word, for both below 2^32.
template <Isa>
struct PackedEntry {
  std::uint64_t word;
  DRUPE_INLINE static PackedEntry make(std::int64_t row, std::int64_t payload) {
    return {static_cast<std::uint64_t>(row) << 32 | static_cast<std::uint64_t>(payload)};
  }
  DRUPE_INLINE std::int64_t row() const { return static_cast<std::int64_t>(word >> 32); }
  DRUPE_INLINE std::int64_t payload() const { return static_cast<std::int64_t>(word & 0xffffffffu); }
};

template <Isa>
struct WideEntry {
  std::int64_t row_, payload_;
  DRUPE_INLINE static WideEntry make(std::int64_t row, std::int64_t payload) { return {row, payload}; }
  DRUPE_INLINE std::int64_t row() const { return row_; }
  DRUPE_INLINE std::int64_t payload() const { return payload_; }
};

inline constexpr std::int64_t kSortBlock = 32768;  // entries a task

// One pass by the digit (row >> shift) of `width` bits.
template <Isa I, class Entry>
void radix_pass(const Entry* from, Entry* to, std::int64_t size, int shift, int width) {
  const std::int64_t buckets = std::int64_t{1} << width;
  const std::int64_t blocks = (size + kSortBlock - 1) / kSortBlock;
  const auto digit = [=](const Entry& entry) { return (entry.row() >> shift) & (buckets - 1); };
  Scratch<std::int64_t> places(static_cast<std::size_t>(buckets * blocks));
  parallel_ranges(size, kSortBlock, [&](std::int64_t begin, std::int64_t end) {
    std::int64_t* count = places.data() + begin / kSortBlock * buckets;
    std::fill_n(count, buckets, 0);
    for (std::int64_t i = begin; i < end; ++i) ++count[digit(from[i])];
  });
  std::int64_t place = 0;
  for (std::int64_t bucket = 0; bucket < buckets; ++bucket) {
    for (std::int64_t block = 0; block < blocks; ++block) {
      std::int64_t& count = places[static_cast<std::size_t>(block * buckets + bucket)];
      const std::int64_t here = count;
      count = place;
      place += here;
    }
  }
  parallel_ranges(size, kSortBlock, [&](std::int64_t begin, std::int64_t end) {
    std::int64_t* next = places.data() + begin / kSortBlock * buckets;
    for (std::int64_t i = begin; i < end; ++i) to[next[digit(from[i])]++] = from[i];
  });
}

// Sorts by row, all rows below 2^bits, between two buffers; gives the one with the result.
template <Isa I, class Entry>
Entry* radix_sort(Entry* entries, Entry* spare, std::int64_t size, int bits) {
  const int widest = size < 16384 ? 8 : 11;  // counting must not cost more than moving
  const int passes = (bits + widest - 1) / widest;
  const int width = passes ? (bits + passes - 1) / passes : 0;
  for (int pass = 0; pass < passes; ++pass) {
    radix_pass<I>(entries, spare, size, pass * width, width);
    std::swap(entries, spare);
  }
  return entries;
}

}  // namespace drupe::cpu
