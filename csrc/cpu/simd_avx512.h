// Vec on AVX-512 (F, BW, DQ, VL, CD): 16 floats or 8 doubles. The contract is in simd.h.
#pragma once

#include <immintrin.h>

namespace drupe::cpu {

template <>
struct Mask<float, Isa::avx512> {
  __mmask16 bits;
  DRUPE_INLINE friend Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.bits & b.bits)}; }
  DRUPE_INLINE friend Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.bits | b.bits)}; }
  DRUPE_INLINE friend Mask operator~(Mask a) { return {static_cast<__mmask16>(~a.bits)}; }
  DRUPE_INLINE bool any() const { return bits != 0; }
};

template <>
struct Mask<double, Isa::avx512> {
  __mmask8 bits;
  DRUPE_INLINE friend Mask operator&(Mask a, Mask b) { return {static_cast<__mmask8>(a.bits & b.bits)}; }
  DRUPE_INLINE friend Mask operator|(Mask a, Mask b) { return {static_cast<__mmask8>(a.bits | b.bits)}; }
  DRUPE_INLINE friend Mask operator~(Mask a) { return {static_cast<__mmask8>(~a.bits)}; }
  DRUPE_INLINE bool any() const { return bits != 0; }
};

template <>
struct Vec<float, Isa::avx512> {
  static constexpr int kLanes = 16;
  __m512 v;

  DRUPE_INLINE static Vec zero() { return {_mm512_setzero_ps()}; }
  DRUPE_INLINE static Vec set(float x) { return {_mm512_set1_ps(x)}; }

  DRUPE_INLINE static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  DRUPE_INLINE static Vec load(const Float16* p) { return {_mm512_cvtph_ps(load_16bit(p))}; }
  DRUPE_INLINE static Vec load(const BFloat16* p) { return widen(load_16bit(p)); }
  DRUPE_INLINE static Vec load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  // Lanes of the bits of low[i], and above them those of high[i].
  DRUPE_INLINE static Vec load_pairs(const BFloat16* low, const BFloat16* high) {
    const __m512i below = _mm512_cvtepu16_epi32(load_16bit(low));
    return {_mm512_or_ps(_mm512_castsi512_ps(below), load(high).v)};
  }
  DRUPE_INLINE static Vec load(const Float16* p, int n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))};
  }
  DRUPE_INLINE static Vec load(const BFloat16* p, int n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }

  DRUPE_INLINE static Vec load(const std::uint8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  DRUPE_INLINE static Vec load(const std::uint8_t* p, int n) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p)))};
  }

  DRUPE_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  DRUPE_INLINE void store(std::uint8_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  DRUPE_INLINE void store(std::uint8_t* p, int n) const {
    _mm_mask_storeu_epi8(p, first(n), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  DRUPE_INLINE void store(Float16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half()); }
  DRUPE_INLINE void store(BFloat16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), brain()); }
  DRUPE_INLINE void stream(float* p) const { _mm512_stream_ps(p, v); }
  DRUPE_INLINE void store(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  DRUPE_INLINE void store(Float16* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), half()); }
  DRUPE_INLINE void store(BFloat16* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), brain()); }

 private:
  DRUPE_INLINE static __mmask16 first(int n) {
    return static_cast<__mmask16>(n >= kLanes ? 0xffff : n <= 0 ? 0 : (1u << n) - 1);
  }
  DRUPE_INLINE static __m256i load_16bit(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  DRUPE_INLINE static Vec widen(__m256i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  DRUPE_INLINE __m256i half() const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
  DRUPE_INLINE __m256i brain() const {
    const __m512i word = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(word, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(word, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i result = _mm512_mask_or_epi32(rounded, nan, word, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16));
  }
};

template <>
struct Vec<double, Isa::avx512> {
  static constexpr int kLanes = 8;
  __m512d v;

  DRUPE_INLINE static Vec zero() { return {_mm512_setzero_pd()}; }
  DRUPE_INLINE static Vec set(double x) { return {_mm512_set1_pd(x)}; }
  DRUPE_INLINE static Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  DRUPE_INLINE static Vec load(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
  DRUPE_INLINE static Vec load(const double* p, int n) { return {_mm512_maskz_loadu_pd(first(n), p)}; }
  DRUPE_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
  DRUPE_INLINE void store(float* p) const { _mm256_storeu_ps(p, _mm512_cvtpd_ps(v)); }
  DRUPE_INLINE void stream(double* p) const { _mm512_stream_pd(p, v); }
  DRUPE_INLINE void store(double* p, int n) const { _mm512_mask_storeu_pd(p, first(n), v); }

 private:
  DRUPE_INLINE static __mmask8 first(int n) {
    return static_cast<__mmask8>(n >= kLanes ? 0xff : n <= 0 ? 0 : (1u << n) - 1);
  }
};

using F32Avx512 = Vec<float, Isa::avx512>;
DRUPE_INLINE Mask<float, Isa::avx512> operator<(F32Avx512 a, F32Avx512 b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
}
DRUPE_INLINE Mask<float, Isa::avx512> operator<=(F32Avx512 a, F32Avx512 b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)};
}
DRUPE_INLINE Mask<float, Isa::avx512> operator==(F32Avx512 a, F32Avx512 b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)};
}
DRUPE_INLINE F32Avx512 fma(F32Avx512 a, F32Avx512 b, F32Avx512 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
DRUPE_INLINE F32Avx512 min(F32Avx512 a, F32Avx512 b) {
  return {_mm512_min_ps(a.v, b.v)};
}
DRUPE_INLINE F32Avx512 max(F32Avx512 a, F32Avx512 b) {
  return {_mm512_max_ps(a.v, b.v)};
}
DRUPE_INLINE F32Avx512 abs(F32Avx512 a) {
  return {_mm512_andnot_ps(_mm512_set1_ps(float(-0.0)), a.v)};
}
DRUPE_INLINE F32Avx512 sqrt(F32Avx512 a) {
  return {_mm512_sqrt_ps(a.v)};
}
DRUPE_INLINE F32Avx512 round(F32Avx512 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
DRUPE_INLINE F32Avx512 floor(F32Avx512 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
}
DRUPE_INLINE F32Avx512 select(Mask<float, Isa::avx512> mask, F32Avx512 a, F32Avx512 b) {
  return {_mm512_mask_blend_ps(mask.bits, b.v, a.v)};
}
DRUPE_INLINE F32Avx512 copysign(F32Avx512 magnitude, F32Avx512 sign) {
  const auto bit = _mm512_set1_ps(float(-0.0));
  return {_mm512_or_ps(_mm512_andnot_ps(bit, magnitude.v), _mm512_and_ps(bit, sign.v))};
}
DRUPE_INLINE F32Avx512 ldexp(F32Avx512 a, F32Avx512 n) {
  return {_mm512_scalef_ps(a.v, n.v)};
}
DRUPE_INLINE F32Avx512 exponent(F32Avx512 a) {
  return {_mm512_getexp_ps(a.v)};
}
DRUPE_INLINE F32Avx512 mantissa(F32Avx512 a) {
  return {_mm512_getmant_ps(a.v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src)};
}
// table[i], i in the lowest five bits of each lane of `index`; the table lies at whole lines.
DRUPE_INLINE F32Avx512 lookup(const float (&table)[32], F32Avx512 index) {
  return {_mm512_permutex2var_ps(_mm512_load_ps(table), _mm512_castps_si512(index.v), _mm512_load_ps(table + 16))};
}
DRUPE_INLINE float reduce_add(F32Avx512 a) {
  return _mm512_reduce_add_ps(a.v);
}
DRUPE_INLINE float reduce_max(F32Avx512 a) {
  return _mm512_reduce_max_ps(a.v);
}
DRUPE_INLINE float reduce_min(F32Avx512 a) {
  return _mm512_reduce_min_ps(a.v);
}

using F64Avx512 = Vec<double, Isa::avx512>;
DRUPE_INLINE Mask<double, Isa::avx512> operator<(F64Avx512 a, F64Avx512 b) {
  return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ)};
}
DRUPE_INLINE Mask<double, Isa::avx512> operator<=(F64Avx512 a, F64Avx512 b) {
  return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_LE_OQ)};
}
DRUPE_INLINE Mask<double, Isa::avx512> operator==(F64Avx512 a, F64Avx512 b) {
  return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ)};
}
DRUPE_INLINE F64Avx512 fma(F64Avx512 a, F64Avx512 b, F64Avx512 c) {
  return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}
DRUPE_INLINE F64Avx512 min(F64Avx512 a, F64Avx512 b) {
  return {_mm512_min_pd(a.v, b.v)};
}
DRUPE_INLINE F64Avx512 max(F64Avx512 a, F64Avx512 b) {
  return {_mm512_max_pd(a.v, b.v)};
}
DRUPE_INLINE F64Avx512 abs(F64Avx512 a) {
  return {_mm512_andnot_pd(_mm512_set1_pd(double(-0.0)), a.v)};
}
DRUPE_INLINE F64Avx512 sqrt(F64Avx512 a) {
  return {_mm512_sqrt_pd(a.v)};
}
DRUPE_INLINE F64Avx512 round(F64Avx512 a) {
  return {_mm512_roundscale_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
DRUPE_INLINE F64Avx512 floor(F64Avx512 a) {
  return {_mm512_roundscale_pd(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
}
DRUPE_INLINE F64Avx512 select(Mask<double, Isa::avx512> mask, F64Avx512 a, F64Avx512 b) {
  return {_mm512_mask_blend_pd(mask.bits, b.v, a.v)};
}
DRUPE_INLINE F64Avx512 copysign(F64Avx512 magnitude, F64Avx512 sign) {
  const auto bit = _mm512_set1_pd(double(-0.0));
  return {_mm512_or_pd(_mm512_andnot_pd(bit, magnitude.v), _mm512_and_pd(bit, sign.v))};
}
DRUPE_INLINE F64Avx512 ldexp(F64Avx512 a, F64Avx512 n) {
  return {_mm512_scalef_pd(a.v, n.v)};
}
DRUPE_INLINE F64Avx512 exponent(F64Avx512 a) {
  return {_mm512_getexp_pd(a.v)};
}
DRUPE_INLINE F64Avx512 mantissa(F64Avx512 a) {
  return {_mm512_getmant_pd(a.v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src)};
}
DRUPE_INLINE double reduce_add(F64Avx512 a) {
  return _mm512_reduce_add_pd(a.v);
}
DRUPE_INLINE double reduce_max(F64Avx512 a) {
  return _mm512_reduce_max_pd(a.v);
}
DRUPE_INLINE double reduce_min(F64Avx512 a) {
  return _mm512_reduce_min_pd(a.v);
}

}  // namespace drupe::cpu
