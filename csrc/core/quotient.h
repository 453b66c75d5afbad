// Division that is quick on a GPU too.
#pragma once

#include <cstdint>

namespace drupe {

// a / b of numbers that are not negative, in 32 bits where they fit, as nearly always. The rest goes bit by bit: on a
// GPU a 64-bit division is a subroutine, around which kernels spill registers.
constexpr std::int64_t quotient(std::int64_t a, std::int64_t b) {
  if ((a | b) >> 32 == 0) return static_cast<std::uint32_t>(a) / static_cast<std::uint32_t>(b);
  std::uint64_t result = 0, rest = 0;
  for (int bit = 62; bit >= 0; --bit) {
    rest = 2 * rest + (static_cast<std::uint64_t>(a) >> bit & 1);
    const bool fits = rest >= static_cast<std::uint64_t>(b);
    if (fits) rest -= static_cast<std::uint64_t>(b);
    result = 2 * result + (fits ? 1 : 0);
  }
  return static_cast<std::int64_t>(result);
}
constexpr std::int64_t quotient_up(std::int64_t a, std::int64_t b) {
  return quotient(a + b - 1, b);
}

}  // namespace drupe
