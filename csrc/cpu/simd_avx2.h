// Vec on AVX2 with FMA and F16C: 8 floats or 4 doubles. The contract is in simd.h.
#pragma once

#include <immintrin.h>

namespace drupe::cpu {

template <>
struct Mask<float, Isa::avx2> {
  __m256 bits;
  DRUPE_INLINE friend Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.bits, b.bits)}; }
  DRUPE_INLINE friend Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.bits, b.bits)}; }
  DRUPE_INLINE friend Mask operator~(Mask a) {
    return {_mm256_xor_ps(a.bits, _mm256_castsi256_ps(_mm256_set1_epi32(-1)))};
  }
  DRUPE_INLINE bool any() const { return _mm256_movemask_ps(bits) != 0; }
};

template <>
struct Mask<double, Isa::avx2> {
  __m256d bits;
  DRUPE_INLINE friend Mask operator&(Mask a, Mask b) { return {_mm256_and_pd(a.bits, b.bits)}; }
  DRUPE_INLINE friend Mask operator|(Mask a, Mask b) { return {_mm256_or_pd(a.bits, b.bits)}; }
  DRUPE_INLINE friend Mask operator~(Mask a) {
    return {_mm256_xor_pd(a.bits, _mm256_castsi256_pd(_mm256_set1_epi64x(-1)))};
  }
  DRUPE_INLINE bool any() const { return _mm256_movemask_pd(bits) != 0; }
};

template <>
struct Vec<float, Isa::avx2> {
  static constexpr int kLanes = 8;
  __m256 v;

  DRUPE_INLINE static Vec zero() { return {_mm256_setzero_ps()}; }
  DRUPE_INLINE static Vec set(float x) { return {_mm256_set1_ps(x)}; }

  DRUPE_INLINE static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  DRUPE_INLINE static Vec load(const Float16* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  DRUPE_INLINE static Vec load(const BFloat16* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  DRUPE_INLINE static Vec load(const std::uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
  }
  DRUPE_INLINE static Vec load(const float* p, int n) { return {_mm256_maskload_ps(p, first(n))}; }
  template <class S>
  DRUPE_INLINE static Vec load(const S* p, int n) {
    S lanes[kLanes] = {};
    for (int i = 0; i < n && i < kLanes; ++i) lanes[i] = p[i];
    return load(lanes);
  }

  DRUPE_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  DRUPE_INLINE void store(std::uint8_t* p) const {
    const __m256i word = _mm256_cvtps_epi32(v);
    const __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(word), _mm256_extracti128_si256(word, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(half, half));
  }
  DRUPE_INLINE void store(Float16* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  DRUPE_INLINE void store(BFloat16* p) const {
    const __m256i word = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(word, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(word, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(word, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  DRUPE_INLINE void stream(float* p) const { _mm256_stream_ps(p, v); }
  DRUPE_INLINE void store(float* p, int n) const { _mm256_maskstore_ps(p, first(n), v); }
  template <class S>
  DRUPE_INLINE void store(S* p, int n) const {
    S lanes[kLanes];
    store(lanes);
    for (int i = 0; i < n && i < kLanes; ++i) p[i] = lanes[i];
  }

 private:
  DRUPE_INLINE static __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

template <>
struct Vec<double, Isa::avx2> {
  static constexpr int kLanes = 4;
  __m256d v;

  DRUPE_INLINE static Vec zero() { return {_mm256_setzero_pd()}; }
  DRUPE_INLINE static Vec set(double x) { return {_mm256_set1_pd(x)}; }
  DRUPE_INLINE static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  DRUPE_INLINE static Vec load(const float* p) { return {_mm256_cvtps_pd(_mm_loadu_ps(p))}; }
  DRUPE_INLINE static Vec load(const double* p, int n) { return {_mm256_maskload_pd(p, first(n))}; }
  DRUPE_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
  DRUPE_INLINE void store(float* p) const { _mm_storeu_ps(p, _mm256_cvtpd_ps(v)); }
  DRUPE_INLINE void stream(double* p) const { _mm256_stream_pd(p, v); }
  DRUPE_INLINE void store(double* p, int n) const { _mm256_maskstore_pd(p, first(n), v); }

 private:
  DRUPE_INLINE static __m256i first(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
};

using F32Avx2 = Vec<float, Isa::avx2>;
DRUPE_INLINE Mask<float, Isa::avx2> operator<(F32Avx2 a, F32Avx2 b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)};
}
DRUPE_INLINE Mask<float, Isa::avx2> operator<=(F32Avx2 a, F32Avx2 b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)};
}
DRUPE_INLINE Mask<float, Isa::avx2> operator==(F32Avx2 a, F32Avx2 b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)};
}
DRUPE_INLINE F32Avx2 fma(F32Avx2 a, F32Avx2 b, F32Avx2 c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
DRUPE_INLINE F32Avx2 min(F32Avx2 a, F32Avx2 b) {
  return {_mm256_min_ps(a.v, b.v)};
}
DRUPE_INLINE F32Avx2 max(F32Avx2 a, F32Avx2 b) {
  return {_mm256_max_ps(a.v, b.v)};
}
DRUPE_INLINE F32Avx2 abs(F32Avx2 a) {
  return {_mm256_andnot_ps(_mm256_set1_ps(float(-0.0)), a.v)};
}
DRUPE_INLINE F32Avx2 sqrt(F32Avx2 a) {
  return {_mm256_sqrt_ps(a.v)};
}
DRUPE_INLINE F32Avx2 round(F32Avx2 a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
DRUPE_INLINE F32Avx2 floor(F32Avx2 a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
}
DRUPE_INLINE F32Avx2 select(Mask<float, Isa::avx2> mask, F32Avx2 a, F32Avx2 b) {
  return {_mm256_blendv_ps(b.v, a.v, mask.bits)};
}
DRUPE_INLINE F32Avx2 copysign(F32Avx2 magnitude, F32Avx2 sign) {
  const __m256 bit = _mm256_set1_ps(float(-0.0));
  return {_mm256_or_ps(_mm256_andnot_ps(bit, magnitude.v), _mm256_and_ps(bit, sign.v))};
}

using F64Avx2 = Vec<double, Isa::avx2>;
DRUPE_INLINE Mask<double, Isa::avx2> operator<(F64Avx2 a, F64Avx2 b) {
  return {_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)};
}
DRUPE_INLINE Mask<double, Isa::avx2> operator<=(F64Avx2 a, F64Avx2 b) {
  return {_mm256_cmp_pd(a.v, b.v, _CMP_LE_OQ)};
}
DRUPE_INLINE Mask<double, Isa::avx2> operator==(F64Avx2 a, F64Avx2 b) {
  return {_mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ)};
}
DRUPE_INLINE F64Avx2 fma(F64Avx2 a, F64Avx2 b, F64Avx2 c) {
  return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}
DRUPE_INLINE F64Avx2 min(F64Avx2 a, F64Avx2 b) {
  return {_mm256_min_pd(a.v, b.v)};
}
DRUPE_INLINE F64Avx2 max(F64Avx2 a, F64Avx2 b) {
  return {_mm256_max_pd(a.v, b.v)};
}
DRUPE_INLINE F64Avx2 abs(F64Avx2 a) {
  return {_mm256_andnot_pd(_mm256_set1_pd(double(-0.0)), a.v)};
}
DRUPE_INLINE F64Avx2 sqrt(F64Avx2 a) {
  return {_mm256_sqrt_pd(a.v)};
}
DRUPE_INLINE F64Avx2 round(F64Avx2 a) {
  return {_mm256_round_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
DRUPE_INLINE F64Avx2 floor(F64Avx2 a) {
  return {_mm256_round_pd(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
}
DRUPE_INLINE F64Avx2 select(Mask<double, Isa::avx2> mask, F64Avx2 a, F64Avx2 b) {
  return {_mm256_blendv_pd(b.v, a.v, mask.bits)};
}
DRUPE_INLINE F64Avx2 copysign(F64Avx2 magnitude, F64Avx2 sign) {
  const __m256d bit = _mm256_set1_pd(double(-0.0));
  return {_mm256_or_pd(_mm256_andnot_pd(bit, magnitude.v), _mm256_and_pd(bit, sign.v))};
}

// 2^n for integral n in the normal range.
DRUPE_INLINE F32Avx2 power_of_two(F32Avx2 n) {
  return {
      _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23))};
}
// The sum with 1.5 * 2^52 has n + bias in its low bits.
DRUPE_INLINE F64Avx2 power_of_two(F64Avx2 n) {
  const __m256d shifted = _mm256_add_pd(n.v, _mm256_set1_pd(0x1.8p52 + 1023));
  return {_mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(shifted), 52))};
}
// In two steps: 2^n itself may not be a normal number where a * 2^n is.
template <class T>
DRUPE_INLINE Vec<T, Isa::avx2> ldexp(Vec<T, Isa::avx2> a, Vec<T, Isa::avx2> n) {
  using V = Vec<T, Isa::avx2>;
  const V half = floor(n * V::set(T(0.5)));
  return a * power_of_two(half) * power_of_two(n - half);
}

DRUPE_INLINE F32Avx2 exponent(F32Avx2 a) {
  const auto subnormal = a < F32Avx2::set(0x1p-126f);
  const F32Avx2 normal = select(subnormal, a * F32Avx2::set(0x1p24f), a);
  const __m256i biased = _mm256_srli_epi32(_mm256_castps_si256(normal.v), 23);
  const F32Avx2 e{_mm256_cvtepi32_ps(_mm256_sub_epi32(biased, _mm256_set1_epi32(127)))};
  return select(subnormal, e - F32Avx2::set(24), e);
}
DRUPE_INLINE F32Avx2 mantissa(F32Avx2 a) {
  const F32Avx2 normal = select(a < F32Avx2::set(0x1p-126f), a * F32Avx2::set(0x1p24f), a);
  const __m256 bits = _mm256_and_ps(normal.v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffff)));
  return {_mm256_or_ps(bits, _mm256_set1_ps(1))};
}
DRUPE_INLINE F64Avx2 exponent(F64Avx2 a) {
  const auto subnormal = a < F64Avx2::set(0x1p-1022);
  const F64Avx2 normal = select(subnormal, a * F64Avx2::set(0x1p54), a);
  const __m256i biased = _mm256_srli_epi64(_mm256_castpd_si256(normal.v), 52);
  const __m256d magic = _mm256_set1_pd(0x1p52);
  const __m256d counted = _mm256_sub_pd(_mm256_or_pd(_mm256_castsi256_pd(biased), magic), magic);
  const F64Avx2 e{_mm256_sub_pd(counted, _mm256_set1_pd(1023))};
  return select(subnormal, e - F64Avx2::set(54), e);
}
DRUPE_INLINE F64Avx2 mantissa(F64Avx2 a) {
  const F64Avx2 normal = select(a < F64Avx2::set(0x1p-1022), a * F64Avx2::set(0x1p54), a);
  const __m256d bits = _mm256_and_pd(normal.v, _mm256_castsi256_pd(_mm256_set1_epi64x(0xfffffffffffff)));
  return {_mm256_or_pd(bits, _mm256_set1_pd(1))};
}

DRUPE_INLINE float reduce_add(F32Avx2 a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
DRUPE_INLINE float reduce_max(F32Avx2 a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
DRUPE_INLINE float reduce_min(F32Avx2 a) {
  return -reduce_max(-a);
}
DRUPE_INLINE double reduce_add(F64Avx2 a) {
  const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
}
DRUPE_INLINE double reduce_max(F64Avx2 a) {
  const __m128d x = _mm_max_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_max_sd(x, _mm_unpackhi_pd(x, x)));
}
DRUPE_INLINE double reduce_min(F64Avx2 a) {
  return -reduce_max(-a);
}

}  // namespace drupe::cpu
