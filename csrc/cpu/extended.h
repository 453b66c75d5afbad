// Positive numbers m 2^e whose exponent is a number of its own: products of probabilities neither underflow nor need
// logarithms, and keep their relative precision however small they become. m may grow or shrink by some bits before
// `normal` brings it back to [1, 2); kNever is the exponent of 0, and whatever lies near it counts as 0.
#pragma once

#include "cpu/simd.h"
#include "cpu/simd_math.h"

namespace drupe::cpu {

template <class T>
inline constexpr T kNever = std::numeric_limits<T>::lowest() / 4;

template <class T, Isa I>
struct Extended {
  using V = Vec<T, I>;
  V m, e;

  DRUPE_INLINE static Extended load(const T* m, const T* e) { return {V::load(m), V::load(e)}; }
  DRUPE_INLINE static Extended set(T m, T e) { return {V::set(m), V::set(e)}; }
  DRUPE_INLINE void store(T* to_m, T* to_e) const {
    m.store(to_m);
    e.store(to_e);
  }
};

// m 2^n for n up to about 100. Far below 1 it need not be exact, only negligible and a normal number, also where n is
// -infinity or NaN.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> scaled(Vec<T, I> m, Vec<T, I> n) {
  constexpr T kLeast = std::is_same_v<T, float> ? T(-90) : T(-900);
  return ldexp(m, max(n, Vec<T, I>::set(kLeast)));
}

template <class T, Isa I>
DRUPE_INLINE Extended<T, I> operator+(Extended<T, I> a, Extended<T, I> b) {
  const auto top = max(a.e, b.e);
  return {scaled(a.m, a.e - top) + scaled(b.m, b.e - top), top};
}
template <class T, Isa I>
DRUPE_INLINE Extended<T, I> sum(Extended<T, I> a, Extended<T, I> b, Extended<T, I> c) {
  const auto top = max(max(a.e, b.e), c.e);
  return {(scaled(a.m, a.e - top) + scaled(b.m, b.e - top)) + scaled(c.m, c.e - top), top};
}
template <class T, Isa I>
DRUPE_INLINE Extended<T, I> operator*(Extended<T, I> a, Extended<T, I> b) {
  return {a.m * b.m, a.e + b.e};
}
// 0 where the mask is not set.
template <class T, Isa I>
DRUPE_INLINE Extended<T, I> only(Mask<T, I> mask, Extended<T, I> a) {
  return {select(mask, a.m, Vec<T, I>::zero()), select(mask, a.e, Vec<T, I>::set(kNever<T>))};
}
template <class T, Isa I>
DRUPE_INLINE Extended<T, I> normal(Extended<T, I> a) {
  return only(Vec<T, I>::zero() < a.m, Extended<T, I>{mantissa(a.m), a.e + exponent(a.m)});
}

// e^x for x <= 0, 0 at -infinity.
template <class T, Isa I>
DRUPE_INLINE Extended<T, I> extended_exp(Vec<T, I> x) {
  using V = Vec<T, I>;
  const V n = round(x * V::set(T(1.4426950408889634)));
  V r, m;
  if constexpr (std::is_same_v<T, double>) {
    r = fma(n, V::set(-0x1.62e42fee00000p-1), x);
    r = fma(n, V::set(-0x1.a39ef35793c76p-33), r);
    m = map_lanes(r, [](double a) { return std::exp(a); });
  } else {
    r = fma(n, V::set(-0.693359375f), x);
    r = fma(n, V::set(2.12194440e-4f), r);
    r = max(V::set(-1), min(V::set(1), r));  // where steps between floats are larger than 1, r is not what is left
    m = polynomial(r, 1.f, 1.f, 0.5f, 1.f / 6, 1.f / 24, 1.f / 120, 1.f / 720, 1.f / 5040);
  }
  return only(V::set(kNever<T>) < x, Extended<T, I>{m, n});
}

}  // namespace drupe::cpu
