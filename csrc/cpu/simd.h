// Vec<T, Isa>: a register of floats (or doubles). This file is the contract and its scalar version, one
// element wide; simd_avx2.h, simd_avx512.h and simd_neon.h specialise it. Kernels are templates on Isa and reach
// vectors through this contract alone.
//
// Everything here is a template on Isa or forced inline: an object compiled for a newer ISA must export no
// weak symbol that the linker could pick for an older one (tests/cpu/test_symbols.py).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "core/dtype.h"
#include "cpu/isa.h"

namespace drupe::cpu {

#define DRUPE_INLINE [[gnu::always_inline]] inline

// How many registers hold vectors.
template <Isa I>
inline constexpr int kRegisters = I == Isa::avx512 || I == Isa::neon ? 32 : 16;

// Whether there is lookup(table, index), which takes each lane from an aligned table of 32 floats.
template <Isa I>
inline constexpr bool kHasLookup = I == Isa::avx512;

// The mask that a comparison gives.
template <class T, Isa I>
struct Mask {
  bool bits;
  DRUPE_INLINE friend Mask operator&(Mask a, Mask b) { return {a.bits && b.bits}; }
  DRUPE_INLINE friend Mask operator|(Mask a, Mask b) { return {a.bits || b.bits}; }
  DRUPE_INLINE friend Mask operator~(Mask a) { return {!a.bits}; }
  DRUPE_INLINE bool any() const { return bits; }
};

template <class T, Isa I>
struct Vec {
  static constexpr int kLanes = 1;
  T v;

  DRUPE_INLINE static Vec zero() { return {T(0)}; }
  DRUPE_INLINE static Vec set(T x) { return {x}; }
  // From S in {T, Float16, BFloat16}, for floats also uint8; the second form reads the first n of kLanes, and the
  // rest are zero. Doubles load and store floats too, all lanes.
  template <class S>
  DRUPE_INLINE static Vec load(const S* p) {
    return {static_cast<T>(*p)};
  }
  template <class S>
  DRUPE_INLINE static Vec load(const S* p, int n) {
    return {n > 0 ? static_cast<T>(*p) : T(0)};
  }
  // To S, rounded to nearest even (to uint8 only what it can hold); the second form writes the first n lanes only.
  template <class S>
  DRUPE_INLINE void store(S* p) const {
    *p = static_cast<S>(v);
  }
  template <class S>
  DRUPE_INLINE void store(S* p, int n) const {
    if (n > 0) *p = static_cast<S>(v);
  }
  // Past the caches where the ISA can, for results larger than they are. p is aligned to the register; call
  // stream_fence after the last one, before another thread may read.
  DRUPE_INLINE void stream(T* p) const { *p = v; }
};

// Arithmetic, for the registers of every ISA alike.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> operator+(Vec<T, I> a, Vec<T, I> b) {
  return {a.v + b.v};
}
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> operator-(Vec<T, I> a, Vec<T, I> b) {
  return {a.v - b.v};
}
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> operator*(Vec<T, I> a, Vec<T, I> b) {
  return {a.v * b.v};
}
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> operator/(Vec<T, I> a, Vec<T, I> b) {
  return {a.v / b.v};
}
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> operator-(Vec<T, I> a) {
  return {-a.v};
}

// Comparisons: false where either side is NaN.
template <class T, Isa I>
DRUPE_INLINE Mask<T, I> operator<(Vec<T, I> a, Vec<T, I> b) {
  return {a.v < b.v};
}
template <class T, Isa I>
DRUPE_INLINE Mask<T, I> operator<=(Vec<T, I> a, Vec<T, I> b) {
  return {a.v <= b.v};
}
template <class T, Isa I>
DRUPE_INLINE Mask<T, I> operator==(Vec<T, I> a, Vec<T, I> b) {
  return {a.v == b.v};
}
template <class T, Isa I>
DRUPE_INLINE Mask<T, I> operator>(Vec<T, I> a, Vec<T, I> b) {
  return b < a;
}
template <class T, Isa I>
DRUPE_INLINE Mask<T, I> operator>=(Vec<T, I> a, Vec<T, I> b) {
  return b <= a;
}

// a * b + c, rounded once where the ISA can.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> fma(Vec<T, I> a, Vec<T, I> b, Vec<T, I> c) {
  return {a.v * b.v + c.v};
}
// x86's minps and maxps: the second operand where either is NaN.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> min(Vec<T, I> a, Vec<T, I> b) {
  return {a.v < b.v ? a.v : b.v};
}
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> max(Vec<T, I> a, Vec<T, I> b) {
  return {a.v > b.v ? a.v : b.v};
}
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> abs(Vec<T, I> a) {
  return {std::fabs(a.v)};
}
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> sqrt(Vec<T, I> a) {
  return {std::sqrt(a.v)};
}
// To the nearest integer, ties to even.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> round(Vec<T, I> a) {
  return {std::nearbyint(a.v)};
}
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> floor(Vec<T, I> a) {
  return {std::floor(a.v)};
}
// mask ? a : b
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> select(Mask<T, I> mask, Vec<T, I> a, Vec<T, I> b) {
  return {mask.bits ? a.v : b.v};
}
// |magnitude| with the sign of `sign`.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> copysign(Vec<T, I> magnitude, Vec<T, I> sign) {
  return {std::copysign(magnitude.v, sign.v)};
}
// a * 2^n for integral n, |n| <= 250 (float) or 2000 (double); over- and underflows as the product would.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> ldexp(Vec<T, I> a, Vec<T, I> n) {
  return {std::ldexp(a.v, static_cast<int>(n.v))};
}
// For finite a > 0: a = mantissa(a) * 2^exponent(a) with the mantissa in [1, 2).
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> exponent(Vec<T, I> a) {
  return {std::logb(a.v)};
}
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> mantissa(Vec<T, I> a) {
  int exponent = 0;
  return {2 * std::frexp(a.v, &exponent)};
}
// Makes what stream() wrote visible before whatever is written next.
template <Isa I>
DRUPE_INLINE void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}
// Across lanes, in a fixed tree order.
template <class T, Isa I>
DRUPE_INLINE T reduce_add(Vec<T, I> a) {
  return a.v;
}
template <class T, Isa I>
DRUPE_INLINE T reduce_max(Vec<T, I> a) {
  return a.v;
}
template <class T, Isa I>
DRUPE_INLINE T reduce_min(Vec<T, I> a) {
  return a.v;
}

// dst[j * dst_stride + i] = src[i * src_stride + j] for i, j < 4.
template <Isa I, class T>
DRUPE_INLINE void transpose_4x4(const T* src, std::int64_t src_stride, T* dst, std::int64_t dst_stride) {
#if defined(__SSE2__)
  if constexpr (std::is_same_v<T, float>) {
    __m128 r0 = _mm_loadu_ps(src), r1 = _mm_loadu_ps(src + src_stride);
    __m128 r2 = _mm_loadu_ps(src + 2 * src_stride), r3 = _mm_loadu_ps(src + 3 * src_stride);
    _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
    _mm_storeu_ps(dst, r0);
    _mm_storeu_ps(dst + dst_stride, r1);
    _mm_storeu_ps(dst + 2 * dst_stride, r2);
    _mm_storeu_ps(dst + 3 * dst_stride, r3);
    return;
  }
#elif defined(__aarch64__)
  if constexpr (std::is_same_v<T, float>) {
    const float32x4x2_t even = vzipq_f32(vld1q_f32(src), vld1q_f32(src + 2 * src_stride));
    const float32x4x2_t odd = vzipq_f32(vld1q_f32(src + src_stride), vld1q_f32(src + 3 * src_stride));
    const float32x4x2_t left = vzipq_f32(even.val[0], odd.val[0]), right = vzipq_f32(even.val[1], odd.val[1]);
    vst1q_f32(dst, left.val[0]);
    vst1q_f32(dst + dst_stride, left.val[1]);
    vst1q_f32(dst + 2 * dst_stride, right.val[0]);
    vst1q_f32(dst + 3 * dst_stride, right.val[1]);
    return;
  }
#endif
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) dst[j * dst_stride + i] = src[i * src_stride + j];
  }
}

}  // namespace drupe::cpu

#if defined(__AVX2__)
#include "cpu/simd_avx2.h"
#endif
#if defined(__AVX512F__)
#include "cpu/simd_avx512.h"
#endif
#if defined(__aarch64__)
#include "cpu/simd_neon.h"
#endif
