// Transposing a square block in registers, as large as the ISA has a fast way for.
#pragma once

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

  // Four columns at a time: register m takes them of the rows m, m + 4, m + 8 and m + 12, by loads that shuffle nothing.
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

}  // namespace drupe::cpu
