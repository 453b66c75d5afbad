// Masks as they are stored, lane k in bit k whatever the instruction set, and what takes a mask along.
#pragma once

#include <cstring>

#include "cpu/simd.h"

namespace drupe::cpu {

template <class T, Isa I>
struct MaskBits {
  DRUPE_INLINE static std::uint32_t from(Mask<T, I> mask) { return mask.bits; }
  DRUPE_INLINE static Mask<T, I> to(std::uint32_t bits) { return {(bits & 1) != 0}; }
};

#if defined(__AVX2__)
template <>
struct MaskBits<float, Isa::avx2> {
  DRUPE_INLINE static std::uint32_t from(Mask<float, Isa::avx2> mask) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(mask.bits));
  }
  DRUPE_INLINE static Mask<float, Isa::avx2> to(std::uint32_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i own = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
    return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(own, lane))};
  }
};

template <>
struct MaskBits<double, Isa::avx2> {
  DRUPE_INLINE static std::uint32_t from(Mask<double, Isa::avx2> mask) {
    return static_cast<std::uint32_t>(_mm256_movemask_pd(mask.bits));
  }
  DRUPE_INLINE static Mask<double, Isa::avx2> to(std::uint32_t bits) {
    const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
    const __m256i own = _mm256_and_si256(_mm256_set1_epi64x(bits), lane);
    return {_mm256_castsi256_pd(_mm256_cmpeq_epi64(own, lane))};
  }
};
#endif

#if defined(__AVX512F__)
template <>
struct MaskBits<float, Isa::avx512> {
  DRUPE_INLINE static std::uint32_t from(Mask<float, Isa::avx512> mask) { return mask.bits; }
  DRUPE_INLINE static Mask<float, Isa::avx512> to(std::uint32_t bits) { return {static_cast<__mmask16>(bits)}; }
};

template <>
struct MaskBits<double, Isa::avx512> {
  DRUPE_INLINE static std::uint32_t from(Mask<double, Isa::avx512> mask) { return mask.bits; }
  DRUPE_INLINE static Mask<double, Isa::avx512> to(std::uint32_t bits) { return {static_cast<__mmask8>(bits)}; }
};
#endif

#if defined(__aarch64__)
template <>
struct MaskBits<float, Isa::neon> {
  DRUPE_INLINE static std::uint32_t from(Mask<float, Isa::neon> mask) {
    return vaddvq_u32(vandq_u32(mask.bits, lane()));
  }
  DRUPE_INLINE static Mask<float, Isa::neon> to(std::uint32_t bits) { return {vtstq_u32(vdupq_n_u32(bits), lane())}; }

 private:
  DRUPE_INLINE static uint32x4_t lane() { return uint32x4_t{1, 2, 4, 8}; }
};

template <>
struct MaskBits<double, Isa::neon> {
  DRUPE_INLINE static std::uint32_t from(Mask<double, Isa::neon> mask) {
    return static_cast<std::uint32_t>(vaddvq_u64(vandq_u64(mask.bits, lane())));
  }
  DRUPE_INLINE static Mask<double, Isa::neon> to(std::uint32_t bits) { return {vtstq_u64(vdupq_n_u64(bits), lane())}; }

 private:
  DRUPE_INLINE static uint64x2_t lane() { return uint64x2_t{1, 2}; }
};
#endif

// a * 2^n as ldexp where `keep`, and 0 elsewhere, where a and n may be anything.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> ldexp_where(Mask<T, I> keep, Vec<T, I> a, Vec<T, I> n) {
  const auto zero = Vec<T, I>::zero();
  return select(keep, ldexp(a, select(keep, n, zero)), zero);
}
#if defined(__AVX512F__)
DRUPE_INLINE Vec<float, Isa::avx512> ldexp_where(Mask<float, Isa::avx512> keep, Vec<float, Isa::avx512> a,
                                                 Vec<float, Isa::avx512> n) {
  return {_mm512_maskz_scalef_ps(keep.bits, a.v, n.v)};
}
#endif

// The mask of a vector of elements from i on, of which each has a bit; reads 4 bytes.
template <class T, Isa I>
DRUPE_INLINE Mask<T, I> load_mask(const std::uint8_t* bits, std::int64_t i) {
  static_assert(Vec<T, I>::kLanes + 7 <= 32);
  std::uint32_t word;
  std::memcpy(&word, bits + i / 8, sizeof word);
  return MaskBits<T, I>::to(word >> (i % 8));
}

// Which of a vector's lanes have this byte.
template <Isa I>
struct EqualBytes {
  DRUPE_INLINE static Mask<float, I> of(const std::uint8_t* bytes, std::uint8_t byte) { return {*bytes == byte}; }
};

#if defined(__AVX2__)
template <>
struct EqualBytes<Isa::avx2> {
  DRUPE_INLINE static Mask<float, Isa::avx2> of(const std::uint8_t* bytes, std::uint8_t byte) {
    const __m128i given = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
    const __m128i equal = _mm_cmpeq_epi8(given, _mm_set1_epi8(static_cast<char>(byte)));
    return {_mm256_castsi256_ps(_mm256_cvtepi8_epi32(equal))};
  }
};
#endif

#if defined(__AVX512F__)
template <>
struct EqualBytes<Isa::avx512> {
  DRUPE_INLINE static Mask<float, Isa::avx512> of(const std::uint8_t* bytes, std::uint8_t byte) {
    const __m128i given = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
    return {_mm_cmpeq_epi8_mask(given, _mm_set1_epi8(static_cast<char>(byte)))};
  }
};
#endif

#if defined(__aarch64__)
template <>
struct EqualBytes<Isa::neon> {
  DRUPE_INLINE static Mask<float, Isa::neon> of(const std::uint8_t* bytes, std::uint8_t byte) {
    std::uint32_t four;
    std::memcpy(&four, bytes, sizeof four);
    const int8x8_t equal = vreinterpret_s8_u8(vceq_u8(vcreate_u8(four), vdup_n_u8(byte)));
    return {vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(vmovl_s8(equal))))};
  }
};
#endif

}  // namespace drupe::cpu
