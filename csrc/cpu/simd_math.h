// Elementary functions on Vec, for floats by polynomial and for doubles lane by lane through libm.
// Stated errors are measured over all floats of the domain (tests/cpu/test_math.py).
#pragma once

#include "cpu/simd_pieces.h"

namespace drupe::cpu {

// f applied to each lane: for functions that are not on a hot path, and for doubles.
template <class T, Isa I, class F>
DRUPE_INLINE Vec<T, I> map_lanes(Vec<T, I> x, F f) {
  T lanes[Vec<T, I>::kLanes];
  x.store(lanes);
  for (T& lane : lanes) lane = f(lane);
  return Vec<T, I>::load(lanes);
}

// c0 + c1 x + c2 x^2 + …, by Horner's rule.
template <class T, Isa I, class... C>
DRUPE_INLINE Vec<T, I> polynomial(Vec<T, I> x, T c0, C... rest) {
  if constexpr (sizeof...(rest) == 0) {
    return Vec<T, I>::set(c0);
  } else {
    return fma(polynomial(x, static_cast<T>(rest)...), x, Vec<T, I>::set(c0));
  }
}

// e^x within 2 ulp; infinity above 88.73; NaN stays NaN. 0 below -87.33, where results would be subnormal:
// processors take a hundred times as long for those.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> exp(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (std::is_same_v<T, double>) {
    return map_lanes(x, [](double a) { return std::exp(a); });
  } else {
    const V least = V::set(-87.3365402f);
    const V clamped = max(least, min(V::set(89.f), x));  // min and max give x where x is NaN
    const V n = round(clamped * V::set(1.44269504f));
    V r = fma(n, V::set(-0.693359375f), clamped);
    r = fma(n, V::set(2.12194440e-4f), r);
    // Taylor's terms up to r^7 / 7!: the remainder on |r| <= ln(2) / 2 is below 6e-9.
    const V p = polynomial(r, 1.f, 1.f, 0.5f, 1.f / 6, 1.f / 24, 1.f / 120, 1.f / 720, 1.f / 5040);
    return select(x < least, V::zero(), ldexp(p, n));
  }
}

// e^x for x <= 0 and for NaN, with a relative error below 1.7e-7 + 2.5e-9 |x|; 1 at 0, 0 below -87.33. Cheaper than
// exp: one step of reduction, and a polynomial fitted for the smallest maximal relative error, 9.2e-8.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> exp_nonpositive(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (std::is_same_v<T, double> || I == Isa::scalar) {  // one step would need a fused multiply-add
    return exp(x);
  } else {
    const V least = V::set(-87.3365402f);
    const V clamped = max(least, x);
    const V n = round(clamped * V::set(1.44269504f));
    const V r = fma(n, V::set(-0.693147182f), clamped);
    const V p = polynomial(r, 1.f, 0.999999702f, 0.499991477f, 0.166676387f, 0.0418981612f, 0.00829027221f);
    return select(x < least, V::zero(), ldexp(p, n));
  }
}

// e^x - 1 without cancellation near 0.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> expm1(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (std::is_same_v<T, double>) {
    return map_lanes(x, [](double a) { return std::expm1(a); });
  } else {
    const V series = x * polynomial(x, 1.f, 0.5f, 1.f / 6, 1.f / 24, 1.f / 120, 1.f / 720, 1.f / 5040, 1.f / 40320);
    return select(abs(x) < V::set(0.5f), series, exp(x) - V::set(1));
  }
}

// Natural logarithm within 2 ulp; -infinity at 0, NaN below 0.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> log(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (std::is_same_v<T, double>) {
    return map_lanes(x, [](double a) { return std::log(a); });
  } else {
    // x = 2^e m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m - 1) / (m + 1).
    V e = exponent(x);
    V m = mantissa(x);
    const auto high = V::set(1.41421356f) < m;
    m = select(high, m * V::set(0.5f), m);
    e = select(high, e + V::set(1), e);
    const V f = m - V::set(1);
    const V s = f / (m + V::set(1));
    const V s2 = s * s;
    const V tail = s2 * polynomial(s2, 2.f / 3, 2.f / 5, 2.f / 7, 2.f / 9, 2.f / 11);
    // 2 s = f - s f, which keeps f exact.
    V y = f - s * (f - tail);
    y = fma(e, V::set(-2.12194440e-4f), y);
    y = fma(e, V::set(0.693359375f), y);
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    y = select(x < V::set(kInfinity), y, x);  // infinity and NaN give themselves
    y = select(x == V::zero(), V::set(-kInfinity), y);
    return select(x < V::zero(), V::set(std::numeric_limits<float>::quiet_NaN()), y);
  }
}

// log(1 + x) without cancellation near 0.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> log1p(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (std::is_same_v<T, double>) {
    return map_lanes(x, [](double a) { return std::log1p(a); });
  } else {
    // log(u) x / (u - 1) with u = 1 + x rounded: the errors of u cancel (Goldberg 1991, theorem 4).
    const V u = x + V::set(1);
    const V d = u - V::set(1);
    const V y = log(u) * (x / d);
    return select(d == V::zero(), x, select(abs(x) < V::set(std::numeric_limits<float>::infinity()), y, log(u)));
  }
}

template <class T, Isa I>
DRUPE_INLINE Vec<T, I> tanh(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (std::is_same_v<T, double>) {
    return map_lanes(x, [](double a) { return std::tanh(a); });
  } else if constexpr (kHasLookup<I>) {
    return by_pieces(kTanh<I>, x);
  } else {
    // tanh|x| = -expm1(-2|x|) / (2 + expm1(-2|x|)), odd in x.
    const V t = expm1(V::set(-2) * abs(x));
    return copysign(-t / (V::set(2) + t), x);
  }
}

// 1 / (1 + e^-x).
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> sigmoid(Vec<T, I> x) {
  using V = Vec<T, I>;
  return V::set(1) / (V::set(1) + exp(-x));
}

// The error function within 2e-7 relative. Below 1 a polynomial in x^2; above, 1 - e^P(|x|) where P
// approximates log(erfc). Both are least-squares fits reweighted towards the smallest maximal error.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> erf(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (std::is_same_v<T, double>) {
    return map_lanes(x, [](double a) { return std::erf(a); });
  } else {
    const V a = min(V::set(4), abs(x));
    const V small = x * polynomial(x * x, 1.12837917f, -0.376126271f, 0.112836002f, -0.0268544444f, 0.00518953496f,
                                   -0.000802083788f, 7.88910817e-05f);
    const V large = V::set(1) - exp(polynomial(a, 8.59413136e-05f, -1.12897972f, -0.634753574f, -0.106167317f,
                                               0.0231226357f, -0.00294059838f, -5.95330726e-05f, 0.000103408421f,
                                               -1.78626431e-05f, 1.11078626e-06f));
    return select(a < V::set(1), small, copysign(large, x));
  }
}

// P(X <= x) of a standard normal X, in [0, 1], within 2.6e-7: by pieces, where NaN gives NaN; else 1/2 and x times a
// rational function of x^2 that is fitted for the smallest maximal relative error, 2e-8 with exact coefficients, up to
// 5.54, where the rest is less than half a rounding step of 1/2, and NaN counts as an infinity of its sign.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> normal_cdf(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (std::is_same_v<T, double>) {
    return map_lanes(x, [](double a) { return 0.5 * std::erfc(a * -0.70710678118654752); });
  } else if constexpr (kHasLookup<I>) {
    return V::set(0.5f) + by_pieces(kNormalCdf<I>, x);
  } else {
    const V a = abs(x), t = x * x, half = V::set(0.5f);
    const V up =
        polynomial(t, 0.398942262f, 0.0336543173f, 0.00466209464f, 0.000166371377f, 6.29524448e-06f, 2.26575949e-08f);
    const V down = polynomial(t, 1.f, 0.25102523f, 0.0285244454f, 0.00187088421f, 7.2645977e-05f, 1.19058609e-06f);
    return half + copysign(select(a < V::set(5.5426f), min(a * up / down, half), half), x);
  }
}

}  // namespace drupe::cpu
