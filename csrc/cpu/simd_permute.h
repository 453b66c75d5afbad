// The lanes of one register in another order.
#pragma once

#include "cpu/simd.h"

namespace drupe::cpu {

// Whether there is permute(x, index): lane i of the result is lane index[i] of x.
template <Isa I, class T>
inline constexpr bool kHasPermute = I != Isa::scalar && std::is_same_v<T, float>;

#if defined(__AVX512F__)
DRUPE_INLINE Vec<float, Isa::avx512> permute(Vec<float, Isa::avx512> x, const std::int32_t* index) {
  return {_mm512_permutexvar_ps(_mm512_loadu_si512(index), x.v)};
}
#elif defined(__AVX2__)
DRUPE_INLINE Vec<float, Isa::avx2> permute(Vec<float, Isa::avx2> x, const std::int32_t* index) {
  return {_mm256_permutevar8x32_ps(x.v, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)))};
}
#elif defined(__aarch64__)
DRUPE_INLINE Vec<float, Isa::neon> permute(Vec<float, Isa::neon> x, const std::int32_t* index) {
  const uint32x4_t lanes = vreinterpretq_u32_s32(vld1q_s32(index));
  const uint32x4_t bytes = vmlaq_n_u32(vdupq_n_u32(0x03020100), lanes, 0x04040404);  // of each lane's
  return {vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(x.v), vreinterpretq_u8_u32(bytes)))};
}
#endif

}  // namespace drupe::cpu
