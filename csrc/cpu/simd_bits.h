// Bits<Isa>: the lanes of a Vec<float, Isa> as 32-bit words, with the operations that number formats are made of.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/simd.h"

namespace drupe::cpu {

template <Isa I>
struct Bits {
  std::uint32_t v;

  DRUPE_INLINE static Bits set(std::uint32_t x) { return {x}; }
  DRUPE_INLINE static Bits of(Vec<float, I> x) { return {std::bit_cast<std::uint32_t>(x.v)}; }
  DRUPE_INLINE Vec<float, I> as_float() const { return {std::bit_cast<float>(v)}; }
  // To and from int32, to nearest even.
  DRUPE_INLINE Vec<float, I> to_float() const { return {static_cast<float>(static_cast<std::int32_t>(v))}; }
  DRUPE_INLINE static Bits from_float(Vec<float, I> x) {
    return {static_cast<std::uint32_t>(static_cast<std::int32_t>(std::nearbyint(x.v)))};
  }
  DRUPE_INLINE static Bits load(const std::uint32_t* p) { return {*p}; }
  DRUPE_INLINE static Bits load(const std::uint8_t* p) { return {*p}; }
  DRUPE_INLINE static Bits load(const std::int8_t* p) { return {static_cast<std::uint32_t>(std::int32_t{*p})}; }
  // The lowest bytes; the upper halves.
  DRUPE_INLINE void store_low(std::uint8_t* p) const { *p = static_cast<std::uint8_t>(v); }
  DRUPE_INLINE void store_high(BFloat16* p) const { p->bits = static_cast<std::uint16_t>(v >> 16); }

  DRUPE_INLINE friend Bits operator+(Bits a, Bits b) { return {a.v + b.v}; }
  DRUPE_INLINE friend Bits operator-(Bits a, Bits b) { return {a.v - b.v}; }
  DRUPE_INLINE friend Bits operator&(Bits a, Bits b) { return {a.v & b.v}; }
  DRUPE_INLINE friend Bits operator|(Bits a, Bits b) { return {a.v | b.v}; }
  DRUPE_INLINE friend Bits operator^(Bits a, Bits b) { return {a.v ^ b.v}; }
  template <int kBits>
  DRUPE_INLINE Bits left() const {
    return {v << kBits};
  }
  template <int kBits>
  DRUPE_INLINE Bits right() const {
    return {v >> kBits};
  }
  DRUPE_INLINE friend Bits min(Bits a, Bits b) { return {std::min(a.v, b.v)}; }
  DRUPE_INLINE friend Bits max(Bits a, Bits b) { return {std::max(a.v, b.v)}; }
  DRUPE_INLINE std::uint32_t largest() const { return v; }
};

#if defined(__AVX2__)
template <>
struct Bits<Isa::avx2> {
  using V = Vec<float, Isa::avx2>;
  __m256i v;

  DRUPE_INLINE static Bits set(std::uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
  DRUPE_INLINE static Bits of(V x) { return {_mm256_castps_si256(x.v)}; }
  DRUPE_INLINE V as_float() const { return {_mm256_castsi256_ps(v)}; }
  DRUPE_INLINE V to_float() const { return {_mm256_cvtepi32_ps(v)}; }
  DRUPE_INLINE static Bits from_float(V x) { return {_mm256_cvtps_epi32(x.v)}; }
  DRUPE_INLINE static Bits load(const std::uint32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
  DRUPE_INLINE static Bits load(const std::uint8_t* p) {
    return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
  }
  DRUPE_INLINE static Bits load(const std::int8_t* p) {
    return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
  }
  DRUPE_INLINE void store_low(std::uint8_t* p) const {
    const __m128i low = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m128i first = _mm_shuffle_epi8(_mm256_castsi256_si128(v), low);
    const __m128i second = _mm_shuffle_epi8(_mm256_extracti128_si256(v, 1), low);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi32(first, second));
  }
  DRUPE_INLINE void store_high(BFloat16* p) const {
    const __m256i high = _mm256_srli_epi32(v, 16);
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }

  DRUPE_INLINE friend Bits operator+(Bits a, Bits b) { return {_mm256_add_epi32(a.v, b.v)}; }
  DRUPE_INLINE friend Bits operator-(Bits a, Bits b) { return {_mm256_sub_epi32(a.v, b.v)}; }
  DRUPE_INLINE friend Bits operator&(Bits a, Bits b) { return {_mm256_and_si256(a.v, b.v)}; }
  DRUPE_INLINE friend Bits operator|(Bits a, Bits b) { return {_mm256_or_si256(a.v, b.v)}; }
  DRUPE_INLINE friend Bits operator^(Bits a, Bits b) { return {_mm256_xor_si256(a.v, b.v)}; }
  template <int kBits>
  DRUPE_INLINE Bits left() const {
    return {_mm256_slli_epi32(v, kBits)};
  }
  template <int kBits>
  DRUPE_INLINE Bits right() const {
    return {_mm256_srli_epi32(v, kBits)};
  }
  DRUPE_INLINE friend Bits min(Bits a, Bits b) { return {_mm256_min_epu32(a.v, b.v)}; }
  DRUPE_INLINE friend Bits max(Bits a, Bits b) { return {_mm256_max_epu32(a.v, b.v)}; }
  DRUPE_INLINE std::uint32_t largest() const {
    __m128i half = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0x4e));
    return static_cast<std::uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(half, _mm_shuffle_epi32(half, 0xb1))));
  }
};
#endif

#if defined(__AVX512F__)
template <>
struct Bits<Isa::avx512> {
  using V = Vec<float, Isa::avx512>;
  __m512i v;

  DRUPE_INLINE static Bits set(std::uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
  DRUPE_INLINE static Bits of(V x) { return {_mm512_castps_si512(x.v)}; }
  DRUPE_INLINE V as_float() const { return {_mm512_castsi512_ps(v)}; }
  DRUPE_INLINE V to_float() const { return {_mm512_cvtepi32_ps(v)}; }
  DRUPE_INLINE static Bits from_float(V x) { return {_mm512_cvtps_epi32(x.v)}; }
  DRUPE_INLINE static Bits load(const std::uint32_t* p) { return {_mm512_loadu_si512(p)}; }
  DRUPE_INLINE static Bits load(const std::uint8_t* p) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  DRUPE_INLINE static Bits load(const std::int8_t* p) {
    return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  DRUPE_INLINE void store_low(std::uint8_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
  }
  DRUPE_INLINE void store_high(BFloat16* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16)));
  }

  DRUPE_INLINE friend Bits operator+(Bits a, Bits b) { return {_mm512_add_epi32(a.v, b.v)}; }
  DRUPE_INLINE friend Bits operator-(Bits a, Bits b) { return {_mm512_sub_epi32(a.v, b.v)}; }
  DRUPE_INLINE friend Bits operator&(Bits a, Bits b) { return {_mm512_and_si512(a.v, b.v)}; }
  DRUPE_INLINE friend Bits operator|(Bits a, Bits b) { return {_mm512_or_si512(a.v, b.v)}; }
  DRUPE_INLINE friend Bits operator^(Bits a, Bits b) { return {_mm512_xor_si512(a.v, b.v)}; }
  template <int kBits>
  DRUPE_INLINE Bits left() const {
    return {_mm512_slli_epi32(v, kBits)};
  }
  template <int kBits>
  DRUPE_INLINE Bits right() const {
    return {_mm512_srli_epi32(v, kBits)};
  }
  DRUPE_INLINE friend Bits min(Bits a, Bits b) { return {_mm512_min_epu32(a.v, b.v)}; }
  DRUPE_INLINE friend Bits max(Bits a, Bits b) { return {_mm512_max_epu32(a.v, b.v)}; }
  DRUPE_INLINE std::uint32_t largest() const {
    const __m256i half = _mm256_max_epu32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    return Bits<Isa::avx2>{half}.largest();
  }
};
#endif

#if defined(__aarch64__)
template <>
struct Bits<Isa::neon> {
  using V = Vec<float, Isa::neon>;
  uint32x4_t v;

  DRUPE_INLINE static Bits set(std::uint32_t x) { return {vdupq_n_u32(x)}; }
  DRUPE_INLINE static Bits of(V x) { return {vreinterpretq_u32_f32(x.v)}; }
  DRUPE_INLINE V as_float() const { return {vreinterpretq_f32_u32(v)}; }
  DRUPE_INLINE V to_float() const { return {vcvtq_f32_s32(vreinterpretq_s32_u32(v))}; }
  DRUPE_INLINE static Bits from_float(V x) { return {vreinterpretq_u32_s32(vcvtnq_s32_f32(x.v))}; }
  DRUPE_INLINE static Bits load(const std::uint32_t* p) { return {vld1q_u32(p)}; }
  DRUPE_INLINE static Bits load(const std::uint8_t* p) { return {vmovl_u16(vget_low_u16(vmovl_u8(four(p))))}; }
  DRUPE_INLINE static Bits load(const std::int8_t* p) {
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_u8(four(p)));
    return {vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(wide)))};
  }
  DRUPE_INLINE void store_low(std::uint8_t* p) const {
    const uint16x4_t half = vmovn_u32(v);
    const std::uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(half, half))), 0);
    std::memcpy(p, &bytes, sizeof(bytes));
  }
  DRUPE_INLINE void store_high(BFloat16* p) const { vst1_u16(reinterpret_cast<std::uint16_t*>(p), vshrn_n_u32(v, 16)); }

  DRUPE_INLINE friend Bits operator+(Bits a, Bits b) { return {vaddq_u32(a.v, b.v)}; }
  DRUPE_INLINE friend Bits operator-(Bits a, Bits b) { return {vsubq_u32(a.v, b.v)}; }
  DRUPE_INLINE friend Bits operator&(Bits a, Bits b) { return {vandq_u32(a.v, b.v)}; }
  DRUPE_INLINE friend Bits operator|(Bits a, Bits b) { return {vorrq_u32(a.v, b.v)}; }
  DRUPE_INLINE friend Bits operator^(Bits a, Bits b) { return {veorq_u32(a.v, b.v)}; }
  template <int kBits>
  DRUPE_INLINE Bits left() const {
    return {vshlq_n_u32(v, kBits)};
  }
  template <int kBits>
  DRUPE_INLINE Bits right() const {
    return {vshrq_n_u32(v, kBits)};
  }
  DRUPE_INLINE friend Bits min(Bits a, Bits b) { return {vminq_u32(a.v, b.v)}; }
  DRUPE_INLINE friend Bits max(Bits a, Bits b) { return {vmaxq_u32(a.v, b.v)}; }
  DRUPE_INLINE std::uint32_t largest() const { return vmaxvq_u32(v); }

 private:
  DRUPE_INLINE static uint8x8_t four(const void* p) {
    std::uint32_t bytes;
    std::memcpy(&bytes, p, sizeof(bytes));
    return vreinterpret_u8_u32(vdup_n_u32(bytes));
  }
};
#endif

}  // namespace drupe::cpu
