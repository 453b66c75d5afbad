// Powers on Vec: of floats through doubles where there is a fused multiply-add, else lane by lane through libm.
// The stated error is measured (tests/cpu/test_math.py).
#pragma once

#include "cpu/simd_math.h"

namespace drupe::cpu {

// x^y for finite x > 0 and finite y, within 2^-31 of the result where it is a normal float; what no float holds may
// be 2^200 or 2^-200.
template <Isa I>
DRUPE_INLINE Vec<double, I> power_of_positive(Vec<double, I> x, Vec<double, I> y) {
  using V = Vec<double, I>;
  // x = 2^e m with m in [sqrt(1/2), sqrt(2)); log2 m = s P(s^2), s = (m - 1) / (m + 1). Both polynomials are fitted
  // for the smallest maximal relative error, 4e-12 and 4e-11.
  V e = exponent(x), m = mantissa(x);
  const auto high = V::set(1.4142135623730951) < m;
  m = select(high, m * V::set(0.5), m);
  e = select(high, e + V::set(1), e);
  const V s = (m - V::set(1)) / (m + V::set(1));
  const V log2 = fma(s,
                     polynomial(s * s, 2.8853900817900862, 0.96179667334179749, 0.57708358496515137,
                                0.41167271899777669, 0.34073010658534338),
                     e);
  const V p = max(V::set(-200), min(V::set(200), y * log2));
  const V n = round(p);
  return ldexp(polynomial(p - n, 0.99999999996168837, 0.69314718072843372, 0.24022651198170034, 0.05550410353466001,
                          0.00961802725048123, 0.0013333922541673226, 0.00015469292228075806, 1.5201928657274308e-5),
               n);
}

// x^y of any lanes, given |x|^y of those where both are finite and x is not 0: the other cases of IEEE 754, 9.2.1.
template <Isa I>
DRUPE_INLINE Vec<float, I> with_special_powers(Vec<float, I> x, Vec<float, I> y, Vec<float, I> power) {
  using V = Vec<float, I>;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const V zero = V::zero(), one = V::set(1), infinity = V::set(kInfinity), half = y * V::set(0.5f), size = abs(x);
  const auto whole = floor(y) == y, odd = whole & ~(floor(half) == half);  // large numbers and infinities are even
  const auto grows = ((one < size) & (zero < y)) | ((size < one) & (y < zero));
  const auto endless = abs(y) == infinity;
  V r = select((x == zero) | (size == infinity) | endless, select(grows, infinity, zero), power);
  r = select((x == x) & (y == y), r, x + y);
  r = select((copysign(one, x) < zero) & odd, -r, r);
  r = select((x < zero) & (size < infinity) & ~whole, V::set(std::numeric_limits<float>::quiet_NaN()), r);
  return select((y == zero) | (x == one) | (endless & (size == one)), one, r);
}

// x^y within 0.51 ulp for floats.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> pow(Vec<T, I> x, Vec<T, I> y) {
  using V = Vec<T, I>;
  if constexpr (std::is_same_v<T, double> || I == Isa::scalar) {
    T base[V::kLanes], exponent[V::kLanes];
    x.store(base);
    y.store(exponent);
    for (int i = 0; i < V::kLanes; ++i) base[i] = std::pow(base[i], exponent[i]);
    return V::load(base);
  } else {
    using D = Vec<double, I>;
    alignas(64) float base[V::kLanes], exponent[V::kLanes];
    abs(x).store(base);
    y.store(exponent);
#pragma GCC unroll 2
    for (int i = 0; i < V::kLanes; i += D::kLanes) {
      power_of_positive(D::load(base + i), D::load(exponent + i)).store(base + i);
    }
    const V power = V::load(base), largest = V::set(std::numeric_limits<float>::max());
    const auto plain = (V::zero() < x) & (x <= largest) & (abs(y) <= largest);
    return (~plain).any() ? with_special_powers(x, y, power) : power;
  }
}

}  // namespace drupe::cpu
