// Sine and cosine on Vec: for floats by polynomial where there is a fused multiply-add, else lane by lane through libm.
// Stated errors are measured over all floats of the domain (tests/cpu/test_math.py).
#pragma once

#include "cpu/simd_bits.h"
#include "cpu/simd_math.h"

namespace drupe::cpu {

// sin(x + turns pi / 2) within 0.89 ulp for |x| <= 2^18, though +0 at -0.
//
// x = n pi/2 + r, where |r| exceeds pi/4 by n 2^-25 at most and pi/2 is the sum of three floats: the product with the
// first leaves no rounding error, what is left of r + n times the others goes to `low`. Polynomials of r^2 that are
// fitted for the smallest maximal relative error, 4e-9 and 2e-10, follow.
template <Isa I>
DRUPE_INLINE Vec<float, I> turned_sine(Vec<float, I> x, std::uint32_t turns) {
  using V = Vec<float, I>;
  const V to_integer = V::set(12582912.f);  // 1.5 2^23: a sum with it ends in the integer's bits
  const V shifted = fma(x, V::set(0.636619772f), to_integer);
  const V n = to_integer - shifted;
  const V second = V::set(-0x1.777a5cp-25f), near = fma(n, V::set(0x1.921fb6p+0f), x);
  const V r = near + fma(n, second, V::zero());  // rounded twice: the compiler makes one fma of a product and a sum
  const V low = fma(n, V::set(-0x1.ee59dap-50f), fma(n, second, near - r));
  const V z = r * r;
  const V sine = r + fma(r * z, polynomial(z, -0.16666654f, 0.008332113f, -0.00019508741f), low);
  const V half = V::set(-0.5f), high = fma(half, z, V::set(1));
  const V rest = fma(half * r, r, V::set(1) - high) - r * low;  // cos r - high, less terms from r^4 on
  const V cosine = high + fma(z * z, polynomial(z, 0.041666646f, -0.0013887251f, 2.442568e-05f), rest);
  const auto quadrant = Bits<I>::of(shifted) + Bits<I>::set(turns);
  const auto odd = (quadrant.template left<31>() | Bits<I>::of(V::set(1))).as_float() < V::zero();
  const auto sign = quadrant.template right<1>().template left<31>();
  return (Bits<I>::of(select(odd, cosine, sine)) ^ sign).as_float();
}

// y, but f(x) through libm in lanes where x is NaN or too large for turned_sine.
template <Isa I, class F>
DRUPE_INLINE Vec<float, I> or_libm(Vec<float, I> x, Vec<float, I> y, F f) {
  const auto far = ~(abs(x) <= Vec<float, I>::set(0x1p18f));
  return far.any() ? select(far, map_lanes(x, f), y) : y;
}

template <class T, Isa I>
DRUPE_INLINE Vec<T, I> sin(Vec<T, I> x) {
  const auto libm = [](T a) { return std::sin(a); };
  if constexpr (std::is_same_v<T, double> || I == Isa::scalar) {
    return map_lanes(x, libm);
  } else {
    return or_libm(x, select(x == Vec<T, I>::zero(), x, turned_sine(x, 0)), libm);
  }
}

template <class T, Isa I>
DRUPE_INLINE Vec<T, I> cos(Vec<T, I> x) {
  const auto libm = [](T a) { return std::cos(a); };
  if constexpr (std::is_same_v<T, double> || I == Isa::scalar) {
    return map_lanes(x, libm);
  } else {
    return or_libm(x, turned_sine(x, 1), libm);
  }
}

}  // namespace drupe::cpu
