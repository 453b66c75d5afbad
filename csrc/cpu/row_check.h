// Checks of the indices that a task is about to use.
#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace drupe::cpu {

// Whether holds(i) for all i in [0, size), looked at in blocks of fixed length, which the compiler vectorises.
template <class Holds>
DRUPE_INLINE bool all_of_blocks(std::int64_t size, const Holds& holds) {
  constexpr std::int64_t kBlock = 64;
  std::uint64_t failures = 0;
  std::int64_t i = 0;
  for (; i + kBlock <= size; i += kBlock) {
    for (std::int64_t k = 0; k < kBlock; ++k) failures |= static_cast<std::uint64_t>(!holds(i + k));
  }
  for (; i < size; ++i) failures |= static_cast<std::uint64_t>(!holds(i));
  return failures == 0;
}

template <class Index>
DRUPE_INLINE bool all_below(const Index* indices, std::int64_t size, std::int64_t limit) {
  return all_of_blocks(size, [=](std::int64_t i) {
    return static_cast<std::uint64_t>(static_cast<std::int64_t>(indices[i])) < static_cast<std::uint64_t>(limit);
  });
}

}  // namespace drupe::cpu
