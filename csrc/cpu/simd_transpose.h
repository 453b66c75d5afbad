// Across the lanes of several registers at once: square blocks transposed, as large as the ISA has a fast way for, and
// one number of each register.
#pragma once

#include <algorithm>

#include "cpu/simd.h"

namespace drupe::cpu {

template <Isa I, class T>
struct Transpose {
  static constexpr int kSide = 4;

  // to[j * to_row + i] = from[i * from_row + j] for i, j < kSide
  DRUPE_INLINE static void block(const T* from, std::int64_t from_row, T* to, std::int64_t to_row) {
    transpose_4x4<I>(from, from_row, to, to_row);
  }
};

#if defined(__AVX512F__)
template <>
struct Transpose<Isa::avx512, float> {
  static constexpr int kSide = 16;

  // Four columns at a time: register m takes them of the rows m, m + 4, m + 8 and m + 12, by loads that shuffle
  // nothing.
  DRUPE_INLINE static void block(const float* from, std::int64_t from_row, float* to, std::int64_t to_row) {
#pragma GCC unroll 4
    for (int j = 0; j < kSide; j += 4) {
      const __m512 r0 = rows(from + j, 4 * from_row), r1 = rows(from + from_row + j, 4 * from_row);
      const __m512 r2 = rows(from + 2 * from_row + j, 4 * from_row), r3 = rows(from + 3 * from_row + j, 4 * from_row);
      const __m512 low01 = _mm512_unpacklo_ps(r0, r1), high01 = _mm512_unpackhi_ps(r0, r1);
      const __m512 low23 = _mm512_unpacklo_ps(r2, r3), high23 = _mm512_unpackhi_ps(r2, r3);
      _mm512_storeu_ps(to + j * to_row, _mm512_shuffle_ps(low01, low23, 0x44));
      _mm512_storeu_ps(to + (j + 1) * to_row, _mm512_shuffle_ps(low01, low23, 0xee));
      _mm512_storeu_ps(to + (j + 2) * to_row, _mm512_shuffle_ps(high01, high23, 0x44));
      _mm512_storeu_ps(to + (j + 3) * to_row, _mm512_shuffle_ps(high01, high23, 0xee));
    }
  }

 private:
  DRUPE_INLINE static __m512 rows(const float* from, std::int64_t stride) {
    __m512 r = _mm512_castps128_ps512(_mm_loadu_ps(from));
    r = _mm512_insertf32x4(r, _mm_loadu_ps(from + stride), 1);
    r = _mm512_insertf32x4(r, _mm_loadu_ps(from + 2 * stride), 2);
    return _mm512_insertf32x4(r, _mm_loadu_ps(from + 3 * stride), 3);
  }
};
#endif

// to[j * to_row + i] = from[i * from_row + j] for i, j < 8, of 16 bits each: neighbours, pairs and fours interleave.
template <Isa I>
DRUPE_INLINE void transpose_8x8(const std::uint16_t* from, std::int64_t from_row, std::uint16_t* to,
                                std::int64_t to_row) {
#if defined(__SSE2__)
  __m128i r[8], pairs[8], fours[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * from_row));
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm_unpacklo_epi16(r[i], r[i + 1]);
    pairs[i + 1] = _mm_unpackhi_epi16(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const int at = i / 2 * 4 + i % 2;  // rows 0 to 3 before 4 to 7, of each the left half before the right
    fours[2 * i] = _mm_unpacklo_epi32(pairs[at], pairs[at + 2]);
    fours[2 * i + 1] = _mm_unpackhi_epi32(pairs[at], pairs[at + 2]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    auto* place = to + 2 * i * to_row;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(place), _mm_unpacklo_epi64(fours[i], fours[i + 4]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(place + to_row), _mm_unpackhi_epi64(fours[i], fours[i + 4]));
  }
#elif defined(__aarch64__)
  uint16x8_t r[8];
  uint32x4_t pairs[8];
  uint64x2_t fours[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = vld1q_u16(from + i * from_row);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = vreinterpretq_u32_u16(vzip1q_u16(r[i], r[i + 1]));
    pairs[i + 1] = vreinterpretq_u32_u16(vzip2q_u16(r[i], r[i + 1]));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const int at = i / 2 * 4 + i % 2;  // as above
    fours[2 * i] = vreinterpretq_u64_u32(vzip1q_u32(pairs[at], pairs[at + 2]));
    fours[2 * i + 1] = vreinterpretq_u64_u32(vzip2q_u32(pairs[at], pairs[at + 2]));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    vst1q_u16(to + 2 * i * to_row, vreinterpretq_u16_u64(vzip1q_u64(fours[i], fours[i + 4])));
    vst1q_u16(to + (2 * i + 1) * to_row, vreinterpretq_u16_u64(vzip2q_u64(fours[i], fours[i + 4])));
  }
#else
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < 8; ++j) to[j * to_row + i] = from[i * from_row + j];
  }
#endif
}

// to[j * to_row + i] = from[i * from_row + j] for i < rows, j < cols, in blocks of 4 x 4, or 8 x 8 of 16 bits, ...
template <Isa I, class T>
void transpose_small(const T* from, std::int64_t from_row, T* to, std::int64_t to_row, std::int64_t rows,
                     std::int64_t cols) {
  constexpr std::int64_t kSide = sizeof(T) == 2 ? 8 : 4;
  for (std::int64_t j = 0; j < cols; j += kSide) {
    for (std::int64_t i = 0; i < rows; i += kSide) {
      const T* block = from + i * from_row + j;
      T* place = to + j * to_row + i;
      if (i + kSide <= rows && j + kSide <= cols) {
        if constexpr (kSide == 8) {
          transpose_8x8<I>(block, from_row, place, to_row);
        } else {
          transpose_4x4<I>(block, from_row, place, to_row);
        }
        continue;
      }
      for (std::int64_t r = 0; r < std::min(kSide, rows - i); ++r) {
        for (std::int64_t c = 0; c < std::min(kSide, cols - j); ++c) {
          place[c * to_row + r] = block[r * from_row + c];
        }
      }
    }
  }
}

// ... or in the largest that there are, `to` row after row: for few rows of `from`, of which all are read side by side.
template <Isa I, class T>
void transpose(const T* from, std::int64_t from_row, T* to, std::int64_t to_row, std::int64_t rows, std::int64_t cols) {
  constexpr int kSide = Transpose<I, T>::kSide;
  const std::int64_t down = rows / kSide * kSide, across = cols / kSide * kSide;
  for (std::int64_t j = 0; j < across; j += kSide) {
    for (std::int64_t i = 0; i < down; i += kSide) {
      Transpose<I, T>::block(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
    }
  }
  transpose_small<I>(from + across, from_row, to + across * to_row, to_row, down, cols - across);
  transpose_small<I>(from + down * from_row, from_row, to + down, to_row, rows - down, cols);
}

inline constexpr int kReducedRows = 16;

// to[i] = the largest or smallest lane, of numbers, or the sum of the lanes in a fixed order, of rows[i], for all
// kReducedRows of them.
template <Isa I, class T>
struct ReduceRows {
  using V = Vec<T, I>;
  DRUPE_INLINE static void maximum(const V* rows, T* to) {
    for (int i = 0; i < kReducedRows; ++i) to[i] = reduce_max(rows[i]);
  }
  DRUPE_INLINE static void minimum(const V* rows, T* to) {
    for (int i = 0; i < kReducedRows; ++i) to[i] = reduce_min(rows[i]);
  }
  DRUPE_INLINE static void sum(const V* rows, T* to) {
    for (int i = 0; i < kReducedRows; ++i) to[i] = reduce_add(rows[i]);
  }
};

#if defined(__AVX512F__)
template <>
struct ReduceRows<Isa::avx512, float> {
  using V = Vec<float, Isa::avx512>;
  DRUPE_INLINE static void maximum(const V* rows, float* to) {
    merge(rows, to, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
  }
  DRUPE_INLINE static void minimum(const V* rows, float* to) {
    merge(rows, to, [](__m512 a, __m512 b) { return _mm512_min_ps(a, b); });
  }
  DRUPE_INLINE static void sum(const V* rows, float* to) {
    merge(rows, to, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
  }

 private:
  // Halves the lanes of a row in each of four steps, and puts two rows in a register: a quarter of the shuffles.
  template <class F>
  DRUPE_INLINE static void merge(const V* rows, float* to, const F& f) {
    __m512 four[4], eight[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512 a = rows[4 * i].v, b = rows[4 * i + 1].v, c = rows[4 * i + 2].v, d = rows[4 * i + 3].v;
      const __m512 ab = f(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
      const __m512 cd = f(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
      four[i] = f(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      eight[i] = f(_mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0x88),
                   _mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0xdd));
    }
    _mm512_storeu_ps(to,
                     f(_mm512_shuffle_f32x4(eight[0], eight[1], 0x88), _mm512_shuffle_f32x4(eight[0], eight[1], 0xdd)));
  }
};
#endif

#if defined(__aarch64__)
template <>
struct ReduceRows<Isa::neon, float> {
  using V = Vec<float, Isa::neon>;
  DRUPE_INLINE static void maximum(const V* rows, float* to) {
    merge(rows, to, [](float32x4_t a, float32x4_t b) { return vpmaxnmq_f32(a, b); });
  }
  DRUPE_INLINE static void minimum(const V* rows, float* to) {
    merge(rows, to, [](float32x4_t a, float32x4_t b) { return vpminnmq_f32(a, b); });
  }
  DRUPE_INLINE static void sum(const V* rows, float* to) {
    merge(rows, to, [](float32x4_t a, float32x4_t b) { return vpaddq_f32(a, b); });
  }

 private:
  // f combines neighbouring lanes of two registers.
  template <class F>
  DRUPE_INLINE static void merge(const V* rows, float* to, const F& f) {
#pragma GCC unroll 4
    for (int i = 0; i < kReducedRows; i += 4) {
      vst1q_f32(to + i, f(f(rows[i].v, rows[i + 1].v), f(rows[i + 2].v, rows[i + 3].v)));
    }
  }
};
#endif

}  // namespace drupe::cpu
