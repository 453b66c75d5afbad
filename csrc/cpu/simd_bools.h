// Masks stored as bools, a byte a lane.
#pragma once

#include "cpu/lanes.h"
#include "cpu/simd_mask.h"

namespace drupe::cpu {

template <class T, Isa I>
struct Bools {
  DRUPE_INLINE static void store(Mask<T, I> mask, bool* p) {
    constexpr int kLanes = Vec<T, I>::kLanes;
    static_assert(kLanes <= 8);
    // A byte each with the mask's bits, of which byte k keeps bit k; 127 more reach the highest bit unless that is 0.
    const std::uint64_t own = MaskBits<T, I>::from(mask) * 0x0101010101010101u & 0x8040201008040201u;
    const std::uint64_t bytes = (own + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
    std::memcpy(p, &bytes, kLanes);
  }
};

#if defined(__AVX512F__)
template <>
struct Bools<float, Isa::avx512> {
  DRUPE_INLINE static void store(Mask<float, Isa::avx512> mask, bool* p) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_maskz_set1_epi8(mask.bits, 1));
  }
};
#endif

// out[i] = a lane of value(i, lanes), a mask, for i in [0, size).
template <Isa I, class T, class Value>
DRUPE_INLINE void write_bools(bool* out, std::int64_t size, const Value& value) {
  constexpr int kLanes = Vec<T, I>::kLanes;
  std::int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) Bools<T, I>::store(value(i, AllLanes{}), out + i);
  if (i < size) {
    bool last[kLanes];
    Bools<T, I>::store(value(i, FirstLanes{static_cast<int>(size - i)}), last);
    std::copy_n(last, size - i, out + i);
  }
}

}  // namespace drupe::cpu
