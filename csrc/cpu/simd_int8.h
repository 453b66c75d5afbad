// Dot products of rows of bytes: sums[i][j] = sum over k of a[i][k] b[j][k], exact, for a few rows of each at a time.
// Both operands are read as they lie; rows past the last are the last one again. And the product of fours of bytes for
// gemm_core, and bytes and halves of them as floats.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/simd.h"

namespace drupe::cpu {

// A register of bytes widened to int16, and of int32 sums of products of neighbours.
template <Isa I>
struct Bytes {
  static constexpr int kWidth = 1, kRows = 2, kCols = 4;
  using Wide = std::int32_t;
  using Sum = std::int32_t;
  DRUPE_INLINE static Wide load(const std::int8_t* p) { return *p; }
  DRUPE_INLINE static Sum zero() { return 0; }
  DRUPE_INLINE static Sum add_products(Sum sum, Wide a, Wide b) { return sum + a * b; }
  DRUPE_INLINE static std::int32_t reduce(Sum sum) { return sum; }
};

#if defined(__AVX2__)
template <>
struct Bytes<Isa::avx2> {
  static constexpr int kWidth = 16, kRows = 2, kCols = 4;
  using Wide = __m256i;
  using Sum = __m256i;
  DRUPE_INLINE static Wide load(const std::int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  DRUPE_INLINE static Sum zero() { return _mm256_setzero_si256(); }
  DRUPE_INLINE static Sum add_products(Sum sum, Wide a, Wide b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
  }
  DRUPE_INLINE static std::int32_t reduce(Sum sum) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
  }
};
#endif

#if defined(__AVX512F__)
template <>
struct Bytes<Isa::avx512> {
  static constexpr int kWidth = 32, kRows = 6, kCols = 4;
  using Wide = __m512i;
  using Sum = __m512i;
  DRUPE_INLINE static Wide load(const std::int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  DRUPE_INLINE static Sum zero() { return _mm512_setzero_si512(); }
  DRUPE_INLINE static Sum add_products(Sum sum, Wide a, Wide b) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
  }
  // Modulo 2^32, which _mm512_reduce_add_epi32 is not: it adds ints.
  DRUPE_INLINE static std::int32_t reduce(Sum sum) {
    return Bytes<Isa::avx2>::reduce(_mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1)));
  }
};
#endif

#if defined(__aarch64__)
template <>
struct Bytes<Isa::neon> {
  static constexpr int kWidth = 16, kRows = 4, kCols = 4;
  using Wide = int8x16_t;  // which the multiplication widens
  using Sum = int32x4_t;
  DRUPE_INLINE static Wide load(const std::int8_t* p) { return vld1q_s8(p); }
  DRUPE_INLINE static Sum zero() { return vdupq_n_s32(0); }
  DRUPE_INLINE static Sum add_products(Sum sum, Wide a, Wide b) {
    sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    return vpadalq_s16(sum, vmull_high_s8(a, b));
  }
  DRUPE_INLINE static std::int32_t reduce(Sum sum) { return vaddvq_s32(sum); }
};
#endif

// The rows of a tile.
template <Isa I, int kRows>
struct ByteRows {
  const std::int8_t* a[kRows];
  const std::int8_t* b[Bytes<I>::kCols];

  DRUPE_INLINE ByteRows(const std::int8_t* left, std::int64_t rows, const std::int8_t* right, std::int64_t cols,
                        std::int64_t K) {
    for (int i = 0; i < kRows; ++i) a[i] = left + std::min<std::int64_t>(i, rows - 1) * K;
    for (int j = 0; j < Bytes<I>::kCols; ++j) b[j] = right + std::min<std::int64_t>(j, cols - 1) * K;
  }
};

template <Isa I, int kRows>
[[gnu::noinline]] void dot_byte_rows(const ByteRows<I, kRows>& rows, std::int64_t K,
                                     std::int32_t (&sums)[kRows][Bytes<I>::kCols]) {
  using B = Bytes<I>;
  typename B::Sum sum[kRows][B::kCols];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < B::kCols; ++j) sum[i][j] = B::zero();
  }
  const auto step = [&](const auto& load) __attribute__((always_inline)) {
    typename B::Wide right[B::kCols];
#pragma GCC unroll 4
    for (int j = 0; j < B::kCols; ++j) right[j] = load(rows.b[j]);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const typename B::Wide left = load(rows.a[i]);
#pragma GCC unroll 4
      for (int j = 0; j < B::kCols; ++j) sum[i][j] = B::add_products(sum[i][j], left, right[j]);
    }
  };
  std::int64_t k = 0;
  for (; k + B::kWidth <= K; k += B::kWidth) step([&](const std::int8_t* row) { return B::load(row + k); });
  if (k < K) {
    step([&](const std::int8_t* row) {
      std::int8_t rest[B::kWidth] = {};
      std::memcpy(rest, row + k, static_cast<std::size_t>(K - k));
      return B::load(rest);
    });
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < B::kCols; ++j) sums[i][j] = B::reduce(sum[i][j]);
  }
}

// The sum of a row.
template <Isa I>
std::int32_t sum_bytes(const std::int8_t* row, std::int64_t K) {
  using B = Bytes<I>;
  std::int8_t ones[B::kWidth];
  std::memset(ones, 1, sizeof(ones));
  const typename B::Wide one = B::load(ones);
  typename B::Sum sum = B::zero();
  std::int64_t k = 0;
  for (; k + B::kWidth <= K; k += B::kWidth) sum = B::add_products(sum, B::load(row + k), one);
  std::int8_t rest[B::kWidth] = {};
  std::memcpy(rest, row + k, static_cast<std::size_t>(K - k));
  return B::reduce(B::add_products(sum, B::load(rest), one));
}

// Whether this processor has vpdpbusd, an extension that the avx512 objects do not assume. It multiplies unsigned bytes
// by signed ones: b enters as b + 128, whose excess, 128 times the sum of a's row, the caller takes off.
template <Isa I>
bool has_byte_dots() {
#if defined(__AVX512F__)
  if constexpr (I == Isa::avx512) return __builtin_cpu_supports("avx512vnni");
#endif
  return false;
}

// dot_byte_rows by vpdpbusd; only where has_byte_dots.
#if defined(__AVX512F__)
template <Isa I, int kRows>
[[gnu::noinline, gnu::target("avx512vnni")]] void dot_byte_rows_vnni(const ByteRows<I, kRows>& rows, std::int64_t K,
                                                                     std::int32_t (&sums)[kRows][Bytes<I>::kCols]) {
  constexpr int kCols = Bytes<I>::kCols;
  const __m512i flip = _mm512_set1_epi8(-128);
  __m512i sum[kRows][kCols];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kCols; ++j) sum[i][j] = _mm512_setzero_si512();
  }
  const auto step = [&](const auto& load) __attribute__((always_inline, target("avx512vnni"))) {
    __m512i right[kCols];
#pragma GCC unroll 4
    for (int j = 0; j < kCols; ++j) right[j] = _mm512_xor_si512(load(rows.b[j]), flip);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const __m512i left = load(rows.a[i]);
#pragma GCC unroll 4
      for (int j = 0; j < kCols; ++j) sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], right[j], left);
    }
  };
  std::int64_t k = 0;
  for (; k + 64 <= K; k += 64) {
    step([&](const std::int8_t* row) { return _mm512_loadu_si512(row + k); });
  }
  if (k < K) {
    const __mmask64 mask = (__mmask64{1} << (K - k)) - 1;
    step([&](const std::int8_t* row) { return _mm512_maskz_loadu_epi8(mask, row + k); });
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kCols; ++j) sums[i][j] = Bytes<I>::reduce(sum[i][j]);
  }
}
#endif

// For gemm_core: fours of bytes in the bits of floats, a's signed and b's unsigned; only where has_byte_dots.
template <Isa I>
struct ByteProduct {
  using V = Vec<float, I>;
  DRUPE_INLINE static V add([[maybe_unused]] V left, [[maybe_unused]] V right, V sum) {
#if defined(__AVX512F__)  // in assembly, since the kernel may not be compiled for what not every AVX-512 processor has
    asm("vpdpbusd %1, %2, %0" : "+v"(sum.v) : "v"(left.v), "v"(right.v));
#endif
    return sum;
  }
  DRUPE_INLINE static V join([[maybe_unused]] V before, V sum) {  // of 32-bit integers
#if defined(__AVX512F__)
    sum.v = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(before.v), _mm512_castps_si512(sum.v)));
#endif
    return sum;
  }
};

// Adds 128 to each of the bytes in n floats, modulo 256.
DRUPE_INLINE void add_128(float* p, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, p + i, sizeof(bits));
    bits ^= 0x80808080u;
    std::memcpy(p + i, &bits, sizeof(bits));
  }
}

// A register of floats from bytes, or from the low or the high four bits of each; all have a sign.
template <Isa I>
struct FloatsOfBytes {
  using V = Vec<float, I>;
  DRUPE_INLINE static V whole(const std::uint8_t* p) { return {static_cast<float>(static_cast<std::int8_t>(*p))}; }
  DRUPE_INLINE static V low(const std::uint8_t* p) { return {static_cast<float>((*p & 7) - (*p & 8))}; }
  DRUPE_INLINE static V high(const std::uint8_t* p) { return {static_cast<float>(static_cast<std::int8_t>(*p) >> 4)}; }
};

#if defined(__AVX2__)
template <>
struct FloatsOfBytes<Isa::avx2> {
  using V = Vec<float, Isa::avx2>;
  DRUPE_INLINE static V whole(const std::uint8_t* p) { return {_mm256_cvtepi32_ps(widen(p))}; }
  DRUPE_INLINE static V low(const std::uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(widen(p), 28), 28))};
  }
  DRUPE_INLINE static V high(const std::uint8_t* p) { return {_mm256_cvtepi32_ps(_mm256_srai_epi32(widen(p), 4))}; }

 private:
  DRUPE_INLINE static __m256i widen(const std::uint8_t* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
};
#endif

#if defined(__aarch64__)
template <>
struct FloatsOfBytes<Isa::neon> {
  using V = Vec<float, Isa::neon>;
  DRUPE_INLINE static V whole(const std::uint8_t* p) { return {vcvtq_f32_s32(widen(p))}; }
  DRUPE_INLINE static V low(const std::uint8_t* p) {
    return {vcvtq_f32_s32(vshrq_n_s32(vshlq_n_s32(widen(p), 28), 28))};
  }
  DRUPE_INLINE static V high(const std::uint8_t* p) { return {vcvtq_f32_s32(vshrq_n_s32(widen(p), 4))}; }

 private:
  DRUPE_INLINE static int32x4_t widen(const std::uint8_t* p) {
    std::uint32_t four;
    std::memcpy(&four, p, sizeof four);
    return vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four))));
  }
};
#endif

#if defined(__AVX512F__)
template <>
struct FloatsOfBytes<Isa::avx512> {
  using V = Vec<float, Isa::avx512>;
  DRUPE_INLINE static V whole(const std::uint8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load(p)))}; }
  // A permutation takes the low four bits of each index alone.
  DRUPE_INLINE static V low(const std::uint8_t* p) {
    return {_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(load(p)), table())};
  }
  DRUPE_INLINE static V high(const std::uint8_t* p) {
    return {_mm512_permutexvar_ps(_mm512_srli_epi32(_mm512_cvtepu8_epi32(load(p)), 4), table())};
  }

 private:
  DRUPE_INLINE static __m128i load(const std::uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  DRUPE_INLINE static __m512 table() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1); }
};
#endif

}  // namespace drupe::cpu
