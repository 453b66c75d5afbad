// Stochastic rounding to the 16-bit formats (Gupta et al. 2015, "Deep Learning with Limited Numerical Precision",
// section 3): a number between two neighbours becomes the farther one with the probability of its distance to the
// nearer, so that the mean of many roundings is the number itself. A random number has 24 bits; where a float16 would
// need more (below 2^-24), the probability is cut to a multiple of 2^-24. Beyond the largest finite number it is
// rounded to nearest, as ever: infinity is reached from nowhere else. Numbers of the format stay as they are,
// infinities and the sign of zero too; a NaN becomes the format's own, of its sign. No branches: loops of it vectorise.
#pragma once

#include <bit>
#include <cstdint>

#include "core/dtype.h"

namespace drupe {

// Seeds what the elements of a step draw: the element at place i of tensor k (in C order) takes bits 8 to 31 of word i
// mod 4 of block (i div 4) + k 2^40 of the Philox stream (seed, offset); ops/dropout.h says what that is.
struct Rounding {
  bool stochastic = false;
  std::uint64_t seed = 0, offset = 0;
};
inline constexpr int kRoundingTensorShift = 40;

// The bits beyond the largest finite number, else `bits`, but never past that number. Without branches.
[[gnu::always_inline]] constexpr std::uint32_t limit_finite(std::uint32_t bits, std::uint32_t magnitude,
                                                            std::uint32_t largest, std::uint32_t overflow,
                                                            std::uint32_t quiet) {
  bits = bits < largest ? bits : largest;
  const std::uint32_t is_over = 0u - static_cast<std::uint32_t>(magnitude >= overflow);
  const std::uint32_t is_nan = 0u - static_cast<std::uint32_t>(magnitude > 0x7f800000u);
  return (bits & ~is_over) | ((largest + 1) & is_over) | (quiet & is_nan);
}

template <class S>
S round_stochastically(float value, std::uint32_t random24) = delete;

template <>
[[gnu::always_inline]] constexpr BFloat16 round_stochastically<BFloat16>(float value, std::uint32_t random24) {
  const auto word = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = word & 0x7fffffffu;
  const std::uint32_t bits = limit_finite((magnitude + (random24 >> 8)) >> 16, magnitude, 0x7f7fu, 0x7f7f8000u, 0x40u);
  BFloat16 result;
  result.bits = static_cast<std::uint16_t>(bits | ((word >> 16) & 0x8000u));
  return result;
}

template <>
[[gnu::always_inline]] constexpr Float16 round_stochastically<Float16>(float value, std::uint32_t random24) {
  const auto word = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = word & 0x7fffffffu;
  const std::uint32_t exponent = magnitude >> 23;
  const std::uint32_t fraction = (magnitude & 0x7fffffu) | 0x800000u;
  // value = fraction 2^-shift units of the last place; below the normal numbers the unit stays 2^-24.
  const std::uint32_t normal = (exponent > 113 ? exponent : 113) - 113;
  const std::uint32_t down = 126 - (exponent < 113 ? exponent : 113);
  const std::uint32_t up = 24 - (down < 24 ? down : 24), beyond = (down > 24 ? down : 24) - 24;
  // The part of a unit, in 2^-24.
  const std::uint32_t part = ((fraction << up) & 0xffffffu) >> (beyond < 31 ? beyond : 31);
  const std::uint32_t rounded = (normal << 10) + (fraction >> (down < 31 ? down : 31)) + ((part + random24) >> 24);
  const std::uint32_t bits = limit_finite(rounded, magnitude, 0x7bffu, 0x477ff000u, 0x200u);
  Float16 result;
  result.bits = static_cast<std::uint16_t>(bits | ((word >> 16) & 0x8000u));
  return result;
}

}  // namespace drupe
