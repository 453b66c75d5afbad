// Elementary functions on Vec, by polynomial; those of doubles that are rarely wanted, and all where doubles have no
// fused multiply-add, lane by lane through libm. Stated errors are measured over all floats of the domain, and over
// samples of doubles (tests/cpu/test_math.py).
#pragma once

#include "cpu/simd_pieces.h"

namespace drupe::cpu {

// f applied to each lane: for functions that are not on a hot path.
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

template <class T, Isa I>
inline constexpr bool kByLibm = std::is_same_v<T, double> && I == Isa::scalar;

// e^x = 2^n (1 + q) with q in [sqrt(1/2) - 1, sqrt(2) - 1], for |x| up to 750.
template <Isa I>
struct SplitExp {
  using V = Vec<double, I>;
  V n, q;
  DRUPE_INLINE explicit SplitExp(V x) : n(round(x * V::set(1.4426950408889634))) {
    V r = fma(n, V::set(-0.69314718036912382), x);
    r = fma(n, V::set(-1.9082149292705877e-10), r);
    // (e^r - 1 - r) / r^2, fitted for the smallest maximal relative error, 2e-16.
    const V p = polynomial(r, 0.500000000000000102, 0.166666666666666438, 0.041666666666624177, 0.00833333333335626593,
                           0.00138888889172044857, 0.000198412697845477487, 2.48015212931034791e-05,
                           2.75573555506341078e-06, 2.76200959667864315e-07, 2.50681856720861227e-08);
    q = fma(r * r, p, r);
  }
};

// e^x within 2 ulp; NaN stays NaN. Of floats infinity above 88.73, and 0 below -87.33, where results would be
// subnormal: processors take a hundred times as long for those.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> exp(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (kByLibm<T, I>) {
    return map_lanes(x, [](double a) { return std::exp(a); });
  } else if constexpr (std::is_same_v<T, double>) {
    const SplitExp<I> e(max(V::set(-750), min(V::set(710), x)));  // min and max give x where x is NaN
    return ldexp(V::set(1) + e.q, e.n);
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
  if constexpr (kByLibm<T, I>) {
    return map_lanes(x, [](double a) { return std::expm1(a); });
  } else if constexpr (std::is_same_v<T, double>) {
    const SplitExp<I> e(max(V::set(-750), min(V::set(710), x)));
    const V half = ldexp(V::set(0.5), e.n), y = fma(half, e.q, half - V::set(0.5));
    return select(abs(x) < V::set(1e-20), x, y + y);
  } else {
    const V series = x * polynomial(x, 1.f, 0.5f, 1.f / 6, 1.f / 24, 1.f / 120, 1.f / 720, 1.f / 5040, 1.f / 40320);
    return select(abs(x) < V::set(0.5f), series, exp(x) - V::set(1));
  }
}

// Natural logarithm within 2 ulp; -infinity at 0, NaN below 0.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> log(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (kByLibm<T, I>) {
    return map_lanes(x, [](double a) { return std::log(a); });
  } else {
    constexpr bool kDouble = std::is_same_v<T, double>;
    // x = 2^e m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m - 1) / (m + 1).
    V e = exponent(x);
    V m = mantissa(x);
    const auto high = V::set(T(1.4142135623730951)) < m;
    m = select(high, m * V::set(T(0.5)), m);
    e = select(high, e + V::set(1), e);
    const V f = m - V::set(1);
    const V s = f / (m + V::set(1));
    const V s2 = s * s;
    V tail;
    if constexpr (kDouble) {  // fitted for the smallest maximal relative error, 5e-16
      tail = s2 * polynomial(s2, 0.66666666666666697, 0.399999999998991197, 0.285714286261328525, 0.222222111113278009,
                             0.181828907032733112, 0.153316727808803858, 0.146170153104222587);
    } else {
      tail = s2 * polynomial(s2, 2.f / 3, 2.f / 5, 2.f / 7, 2.f / 9, 2.f / 11);
    }
    // 2 s = f - s f, which keeps f exact.
    V y = f - s * (f - tail);
    y = fma(e, V::set(kDouble ? T(1.9082149292705877e-10) : T(-2.12194440e-4f)), y);
    y = fma(e, V::set(kDouble ? T(0.69314718036912382) : T(0.693359375f)), y);
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    y = select(x < V::set(kInfinity), y, x);  // infinity and NaN give themselves
    y = select(x == V::zero(), V::set(-kInfinity), y);
    return select(x < V::zero(), V::set(std::numeric_limits<T>::quiet_NaN()), y);
  }
}

// log(1 + x) without cancellation near 0.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> log1p(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (kByLibm<T, I>) {
    return map_lanes(x, [](double a) { return std::log1p(a); });
  } else {
    // log(u) x / (u - 1) with u = 1 + x rounded: the errors of u cancel (Goldberg 1991, theorem 4).
    const V u = x + V::set(1);
    const V d = u - V::set(1);
    const V y = log(u) * (x / d);
    return select(d == V::zero(), x, select(abs(x) < V::set(std::numeric_limits<T>::infinity()), y, log(u)));
  }
}

template <class T, Isa I>
DRUPE_INLINE Vec<T, I> tanh(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (kByLibm<T, I>) {
    return map_lanes(x, [](double a) { return std::tanh(a); });
  } else if constexpr (kHasLookup<I> && std::is_same_v<T, float>) {
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
