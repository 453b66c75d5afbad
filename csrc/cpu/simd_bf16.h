// Vectors of pairs of bfloat16, by the instructions of AVX512-BF16, which not every processor with AVX-512 has.
#pragma once

#include "cpu/simd.h"

namespace drupe::cpu {

// Whether this one has them. They take subnormals as zeros.
template <Isa I>
DRUPE_INLINE bool has_bf16_dot() {
#if defined(__AVX512F__)
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
#else
  return false;
#endif
}

// Whether an ISA's kernels are made for pairs of S.
template <Isa I, class S>
inline constexpr bool kPairs = I == Isa::avx512 && std::is_same_v<S, BFloat16>;

template <Isa I>
struct PairProduct {
  using V = Vec<float, I>;
  DRUPE_INLINE static V add([[maybe_unused]] V left, [[maybe_unused]] V right, V sum) {
#if defined(__AVX512F__)  // in assembly, since the kernel may not be compiled for what not every AVX-512 processor has
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum.v) : "v"(left.v), "v"(right.v));
#endif
    return sum;
  }
  DRUPE_INLINE static V join(V before, V sum) { return before + sum; }
  // The pairs of `low`'s neighbouring lanes, then those of `high`'s, rounded to nearest even, subnormal numbers to
  // zero.
  DRUPE_INLINE static V pair([[maybe_unused]] V low, [[maybe_unused]] V high) {
    V pairs = V::zero();
#if defined(__AVX512F__)
    asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(pairs.v) : "v"(low.v), "v"(high.v));
#endif
    return pairs;
  }
};

}  // namespace drupe::cpu
