// Vec on NEON, which every 64-bit ARM processor has: 4 floats or 2 doubles. The contract is in simd.h.
#pragma once

#include <arm_neon.h>

namespace drupe::cpu {

template <>
struct Mask<float, Isa::neon> {
  uint32x4_t bits;
  DRUPE_INLINE friend Mask operator&(Mask a, Mask b) { return {vandq_u32(a.bits, b.bits)}; }
  DRUPE_INLINE friend Mask operator|(Mask a, Mask b) { return {vorrq_u32(a.bits, b.bits)}; }
  DRUPE_INLINE friend Mask operator~(Mask a) { return {vmvnq_u32(a.bits)}; }
  DRUPE_INLINE bool any() const { return vmaxvq_u32(bits) != 0; }
};

template <>
struct Mask<double, Isa::neon> {
  uint64x2_t bits;
  DRUPE_INLINE friend Mask operator&(Mask a, Mask b) { return {vandq_u64(a.bits, b.bits)}; }
  DRUPE_INLINE friend Mask operator|(Mask a, Mask b) { return {vorrq_u64(a.bits, b.bits)}; }
  DRUPE_INLINE friend Mask operator~(Mask a) { return {veorq_u64(a.bits, vdupq_n_u64(~std::uint64_t{0}))}; }
  DRUPE_INLINE bool any() const { return vmaxvq_u32(vreinterpretq_u32_u64(bits)) != 0; }
};

template <>
struct Vec<float, Isa::neon> {
  static constexpr int kLanes = 4;
  float32x4_t v;

  DRUPE_INLINE static Vec zero() { return {vdupq_n_f32(0)}; }
  DRUPE_INLINE static Vec set(float x) { return {vdupq_n_f32(x)}; }

  DRUPE_INLINE static Vec load(const float* p) { return {vld1q_f32(p)}; }
  DRUPE_INLINE static Vec load(const Float16* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)))}; }
  DRUPE_INLINE static Vec load(const BFloat16* p) {
    return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16))};
  }
  DRUPE_INLINE static Vec load(const std::uint8_t* p) {
    std::uint32_t four;
    std::memcpy(&four, p, sizeof four);
    return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))))};
  }
  DRUPE_INLINE static Vec load(const float* p, int n) {
    float32x4_t x = vdupq_n_f32(0);
    if (n > 0) x = vld1q_lane_f32(p, x, 0);
    if (n > 1) x = vld1q_lane_f32(p + 1, x, 1);
    if (n > 2) x = vld1q_lane_f32(p + 2, x, 2);
    if (n > 3) x = vld1q_lane_f32(p + 3, x, 3);
    return {x};
  }
  template <class S>
  DRUPE_INLINE static Vec load(const S* p, int n) {
    S lanes[kLanes] = {};
    for (int i = 0; i < n && i < kLanes; ++i) lanes[i] = p[i];
    return load(lanes);
  }

  DRUPE_INLINE void store(float* p) const { vst1q_f32(p, v); }
  DRUPE_INLINE void store(std::uint8_t* p) const {
    const uint16x4_t half = vqmovun_s32(vcvtnq_s32_f32(v));
    const std::uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(half, half))), 0);
    std::memcpy(p, &four, sizeof four);
  }
  DRUPE_INLINE void store(Float16* p) const { vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  DRUPE_INLINE void store(BFloat16* p) const {
    const uint32x4_t word = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(word, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(word, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(word, vdupq_n_u32(0x400000));
    vst1_u16(&p->bits, vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16));
  }
  DRUPE_INLINE void stream(float* p) const { store(p); }
  DRUPE_INLINE void store(float* p, int n) const {
    if (n > 0) vst1q_lane_f32(p, v, 0);
    if (n > 1) vst1q_lane_f32(p + 1, v, 1);
    if (n > 2) vst1q_lane_f32(p + 2, v, 2);
    if (n > 3) vst1q_lane_f32(p + 3, v, 3);
  }
  template <class S>
  DRUPE_INLINE void store(S* p, int n) const {
    S lanes[kLanes];
    store(lanes);
    for (int i = 0; i < n && i < kLanes; ++i) p[i] = lanes[i];
  }
};

template <>
struct Vec<double, Isa::neon> {
  static constexpr int kLanes = 2;
  float64x2_t v;

  DRUPE_INLINE static Vec zero() { return {vdupq_n_f64(0)}; }
  DRUPE_INLINE static Vec set(double x) { return {vdupq_n_f64(x)}; }
  DRUPE_INLINE static Vec load(const double* p) { return {vld1q_f64(p)}; }
  DRUPE_INLINE static Vec load(const float* p) { return {vcvt_f64_f32(vld1_f32(p))}; }
  DRUPE_INLINE static Vec load(const double* p, int n) {
    float64x2_t x = vdupq_n_f64(0);
    if (n > 0) x = vld1q_lane_f64(p, x, 0);
    if (n > 1) x = vld1q_lane_f64(p + 1, x, 1);
    return {x};
  }
  DRUPE_INLINE void store(double* p) const { vst1q_f64(p, v); }
  DRUPE_INLINE void store(float* p) const { vst1_f32(p, vcvt_f32_f64(v)); }
  DRUPE_INLINE void stream(double* p) const { store(p); }
  DRUPE_INLINE void store(double* p, int n) const {
    if (n > 0) vst1q_lane_f64(p, v, 0);
    if (n > 1) vst1q_lane_f64(p + 1, v, 1);
  }
};

using F32Neon = Vec<float, Isa::neon>;
DRUPE_INLINE Mask<float, Isa::neon> operator<(F32Neon a, F32Neon b) {
  return {vcltq_f32(a.v, b.v)};
}
DRUPE_INLINE Mask<float, Isa::neon> operator<=(F32Neon a, F32Neon b) {
  return {vcleq_f32(a.v, b.v)};
}
DRUPE_INLINE Mask<float, Isa::neon> operator==(F32Neon a, F32Neon b) {
  return {vceqq_f32(a.v, b.v)};
}
DRUPE_INLINE F32Neon fma(F32Neon a, F32Neon b, F32Neon c) {
  return {vfmaq_f32(c.v, a.v, b.v)};
}
DRUPE_INLINE F32Neon select(Mask<float, Isa::neon> mask, F32Neon a, F32Neon b) {
  return {vbslq_f32(mask.bits, a.v, b.v)};
}
// fmin and fmax would give NaN where either is.
DRUPE_INLINE F32Neon min(F32Neon a, F32Neon b) {
  return select(a < b, a, b);
}
DRUPE_INLINE F32Neon max(F32Neon a, F32Neon b) {
  return select(b < a, a, b);
}
DRUPE_INLINE F32Neon abs(F32Neon a) {
  return {vabsq_f32(a.v)};
}
DRUPE_INLINE F32Neon sqrt(F32Neon a) {
  return {vsqrtq_f32(a.v)};
}
DRUPE_INLINE F32Neon round(F32Neon a) {
  return {vrndnq_f32(a.v)};
}
DRUPE_INLINE F32Neon floor(F32Neon a) {
  return {vrndmq_f32(a.v)};
}
DRUPE_INLINE F32Neon copysign(F32Neon magnitude, F32Neon sign) {
  return {vbslq_f32(vdupq_n_u32(0x80000000u), sign.v, magnitude.v)};
}

using F64Neon = Vec<double, Isa::neon>;
DRUPE_INLINE Mask<double, Isa::neon> operator<(F64Neon a, F64Neon b) {
  return {vcltq_f64(a.v, b.v)};
}
DRUPE_INLINE Mask<double, Isa::neon> operator<=(F64Neon a, F64Neon b) {
  return {vcleq_f64(a.v, b.v)};
}
DRUPE_INLINE Mask<double, Isa::neon> operator==(F64Neon a, F64Neon b) {
  return {vceqq_f64(a.v, b.v)};
}
DRUPE_INLINE F64Neon fma(F64Neon a, F64Neon b, F64Neon c) {
  return {vfmaq_f64(c.v, a.v, b.v)};
}
DRUPE_INLINE F64Neon select(Mask<double, Isa::neon> mask, F64Neon a, F64Neon b) {
  return {vbslq_f64(mask.bits, a.v, b.v)};
}
DRUPE_INLINE F64Neon min(F64Neon a, F64Neon b) {
  return select(a < b, a, b);
}
DRUPE_INLINE F64Neon max(F64Neon a, F64Neon b) {
  return select(b < a, a, b);
}
DRUPE_INLINE F64Neon abs(F64Neon a) {
  return {vabsq_f64(a.v)};
}
DRUPE_INLINE F64Neon sqrt(F64Neon a) {
  return {vsqrtq_f64(a.v)};
}
DRUPE_INLINE F64Neon round(F64Neon a) {
  return {vrndnq_f64(a.v)};
}
DRUPE_INLINE F64Neon floor(F64Neon a) {
  return {vrndmq_f64(a.v)};
}
DRUPE_INLINE F64Neon copysign(F64Neon magnitude, F64Neon sign) {
  return {vbslq_f64(vdupq_n_u64(std::uint64_t{1} << 63), sign.v, magnitude.v)};
}

// 2^n for integral n in the normal range.
DRUPE_INLINE F32Neon power_of_two(F32Neon n) {
  return {vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.v), vdupq_n_s32(127)), 23))};
}
DRUPE_INLINE F64Neon power_of_two(F64Neon n) {
  return {vreinterpretq_f64_s64(vshlq_n_s64(vaddq_s64(vcvtnq_s64_f64(n.v), vdupq_n_s64(1023)), 52))};
}
// In two steps: 2^n itself may not be a normal number where a * 2^n is.
template <class T>
DRUPE_INLINE Vec<T, Isa::neon> ldexp(Vec<T, Isa::neon> a, Vec<T, Isa::neon> n) {
  using V = Vec<T, Isa::neon>;
  const V half = floor(n * V::set(T(0.5)));
  return a * power_of_two(half) * power_of_two(n - half);
}

DRUPE_INLINE F32Neon exponent(F32Neon a) {
  const auto subnormal = a < F32Neon::set(0x1p-126f);
  const F32Neon normal = select(subnormal, a * F32Neon::set(0x1p24f), a);
  const int32x4_t biased = vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_f32(normal.v), 23));
  const F32Neon e{vcvtq_f32_s32(vsubq_s32(biased, vdupq_n_s32(127)))};
  return select(subnormal, e - F32Neon::set(24), e);
}
DRUPE_INLINE F32Neon mantissa(F32Neon a) {
  const F32Neon normal = select(a < F32Neon::set(0x1p-126f), a * F32Neon::set(0x1p24f), a);
  return {vbslq_f32(vdupq_n_u32(0x7fffff), normal.v, vdupq_n_f32(1))};
}
DRUPE_INLINE F64Neon exponent(F64Neon a) {
  const auto subnormal = a < F64Neon::set(0x1p-1022);
  const F64Neon normal = select(subnormal, a * F64Neon::set(0x1p54), a);
  const int64x2_t biased = vreinterpretq_s64_u64(vshrq_n_u64(vreinterpretq_u64_f64(normal.v), 52));
  const F64Neon e{vcvtq_f64_s64(vsubq_s64(biased, vdupq_n_s64(1023)))};
  return select(subnormal, e - F64Neon::set(54), e);
}
DRUPE_INLINE F64Neon mantissa(F64Neon a) {
  const F64Neon normal = select(a < F64Neon::set(0x1p-1022), a * F64Neon::set(0x1p54), a);
  return {vbslq_f64(vdupq_n_u64(0xfffffffffffff), normal.v, vdupq_n_f64(1))};
}

DRUPE_INLINE float reduce_add(F32Neon a) {
  return vaddvq_f32(a.v);
}
DRUPE_INLINE float reduce_max(F32Neon a) {
  return vmaxnmvq_f32(a.v);
}
DRUPE_INLINE float reduce_min(F32Neon a) {
  return vminnmvq_f32(a.v);
}
DRUPE_INLINE double reduce_add(F64Neon a) {
  return vaddvq_f64(a.v);
}
DRUPE_INLINE double reduce_max(F64Neon a) {
  return vmaxnmvq_f64(a.v);
}
DRUPE_INLINE double reduce_min(F64Neon a) {
  return vminnmvq_f64(a.v);
}

}  // namespace drupe::cpu
