// Optimizer states in fewer bits than the float32 that a step makes of them: bfloat16, or 8 bits an element in blocks
// of 256 that share a scale (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"). A step widens a
// state, makes it new in float32, updates the parameter by that, and only then rounds it.
//
// It is rounded stochastically: a mean of which 0.999 stay moves by less than half a unit of either format a step, and
// to nearest would never move. The element at place i (in C order) of tensor k draws word i mod 4 of block
// i div 256 * 4 + i mod 16 div 4 + k 2^40 + 2^39 of the Philox stream (seed, offset), plus i mod 256 div 16 times
// kDrawStep: draws of a block are a lattice, shifted by chance; those of one element are independent from step to step.
// A signed state takes the word's low bits, an unsigned one its high bits.
//
// The 8 bits are a tapered code: the logarithm of the logarithm, each as the bits of a float have it, linear between
// powers of two. A value x of the block becomes y = |x| / scale in (0, 1], that t = 127 - (y's bits) 2^-23 octaves
// below 1, that u = 2 + 2 t (signed) or 2 + t, and the code counts units of 2^-4 or 2^-5 at first, double that from
// each power of two on: the upper bits of u. So a unit is finest near the block's largest value, 2.2 % of it, and grows
// to 17 % 14.75 octaves (signed) or 29.75 octaves (unsigned) below; no table is needed, and the code of a value is
// linear in it, so that the mean of the draws is the value itself.
// - unsigned (means of squares): what is smaller than the smallest code becomes that one: the root that a step divides
//   by is never 0 where the block has anything.
// - signed (7 bits, the sign above them): y has 1.25 2^-15 added, which the last code stands for alone: 0 is exact, and
//   what is below the first unit becomes that or 0.
// The scale is the block's largest magnitude, a little more, so that y stays below 1; at least 2^-60. A block with a
// value of 2^126 or more, an infinity or a NaN has NaN for a scale: all of it is NaN from then on. Zeros with a scale
// of 0 are zero.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace drupe {

inline constexpr std::int64_t kStateBlock = 256;  // elements that share a scale
inline constexpr int kDrawWords = 16;             // of a block
inline constexpr int kDrawShift = 39;
inline constexpr std::uint32_t kDrawStep = 0x9e379e37u;  // the golden section of 2^16, twice

// y from 2^-30 on if unsigned.
template <bool kSigned>
struct TaperedCode {
  static constexpr int kShift = kSigned ? 18 : 17;  // bits of u below a unit
  static constexpr std::uint32_t kLast = kSigned ? 127 : 255;
  static constexpr float kSlope = kSigned ? 0x1p-22f : 0x1p-23f;  // of u, by y's bits below those of 1
};
inline constexpr std::uint32_t kOneBits = 0x3f800000u, kTaperedBase = 0x40000000u;  // of y = 1 and of u = 2
inline constexpr float kTaperedZero = 0x1.4p-15f;
inline constexpr float kScaleMargin = 1 + 0x1p-14f, kLeastScale = 0x1p-60f;
inline constexpr std::uint32_t kScaleLimitBits = 0x7e800000u;  // of 2^126

constexpr std::int64_t state_blocks(std::int64_t size) {
  return (size + kStateBlock - 1) / kStateBlock;
}
constexpr bool is_narrow_state(Dtype dtype) {
  return dtype == Dtype::bf16 || dtype == Dtype::u8;
}

}  // namespace drupe
