// Vec and Mask of integers: the compiler's own vectors, of the ISA's width, whose operators are those of simd.h.
#pragma once

#include <concepts>

#include "cpu/simd.h"

namespace drupe::cpu {

template <Isa I>
inline constexpr int kIntegerBytes = I == Isa::avx512 ? 64
                                     : I == Isa::avx2 ? 32
                                                      : 16;

template <std::integral T, Isa I>
struct Mask<T, I> {
  using Register [[gnu::vector_size(kIntegerBytes<I>)]] = std::make_signed_t<T>;  // of 0 and -1
  Register bits;
  DRUPE_INLINE friend Mask operator&(Mask a, Mask b) { return {a.bits & b.bits}; }
  DRUPE_INLINE friend Mask operator|(Mask a, Mask b) { return {a.bits | b.bits}; }
  DRUPE_INLINE friend Mask operator~(Mask a) { return {~a.bits}; }
};

template <std::integral T, Isa I>
struct Vec<T, I> {
  static constexpr int kLanes = kIntegerBytes<I> / static_cast<int>(sizeof(T));
  using Register [[gnu::vector_size(kIntegerBytes<I>)]] = T;
  Register v;

  DRUPE_INLINE static Vec zero() { return {Register{}}; }
  DRUPE_INLINE static Vec set(T x) { return {x - Register{}}; }
  // From any integers, bool too.
  template <class S>
  DRUPE_INLINE static Vec load(const S* p) {
    using Word = std::conditional_t<std::is_same_v<S, bool>, std::uint8_t, S>;
    using Source [[gnu::vector_size(kLanes * sizeof(Word))]] = Word;
    Source source;
    std::memcpy(&source, p, sizeof(source));
    return {__builtin_convertvector(source, Register)};
  }
  template <class S>
  [[gnu::noinline]] static Vec load(const S* p, int n) {
    T lanes[kLanes] = {};
    for (int i = 0; i < n; ++i) lanes[i] = static_cast<T>(p[i]);
    return load(lanes);
  }
  DRUPE_INLINE void store(T* p) const { std::memcpy(p, &v, sizeof(v)); }
  DRUPE_INLINE void store(T* p, int n) const { std::memcpy(p, &v, static_cast<std::size_t>(n) * sizeof(T)); }
};

}  // namespace drupe::cpu
