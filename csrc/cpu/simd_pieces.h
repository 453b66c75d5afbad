// Odd functions that are constant from some point on, piece by piece: the coefficients of a lane's piece come by a
// permutation of two registers. For ISAs with kHasLookup.
#pragma once

#include "cpu/simd.h"

namespace drupe::cpu {

// Around i / scale for i < 32, with r = scale x - i in [-1/2, 1/2]: the sum of coefficients[k][i] r^k.
template <int kDegree>
struct OddPieces {
  static constexpr int kCount = 32;
  float scale;
  alignas(64) float coefficients[kDegree + 1][kCount];

  // Taylor's terms, those of two degrees more folded into them by Chebyshev polynomials, which keeps them odd around 0;
  // the last piece is `limit`. taylor(x, terms) gives the derivatives at x, over the factorials of their orders.
  template <class Taylor>
  constexpr OddPieces(double end, double limit, const Taylor& taylor)
      : scale(static_cast<float>((kCount - 1) / end)), coefficients{} {
    for (int i = 0; i + 1 < kCount; ++i) {
      double terms[kDegree + 3] = {};
      taylor(i / double{scale}, terms);
      double power = 1;
      for (double& term : terms) term *= power, power /= double{scale};
      for (int n = kDegree + 2; n > kDegree; --n) fold(terms, n);
      for (int k = 0; k <= kDegree; ++k) coefficients[k][i] = static_cast<float>(terms[k]);
    }
    coefficients[0][kCount - 1] = static_cast<float>(limit);
  }

 private:
  // r^n less T_n(2 r) / 2^(2 n - 1), whose largest value on [-1/2, 1/2] is the smallest there is: of degree n - 2.
  // T_n(y) has the coefficients (-1)^j 2^(n - 2 j - 1) n / (n - j) (n - j over j) of y^(n - 2 j).
  static constexpr void fold(double* terms, int n) {
    double ratio = 1;  // of the coefficient of r^(n - 2 j) to that of r^n
    for (int j = 1; 2 * j <= n; ++j) {
      const double above = (n - 2 * j + 2) * (n - 2 * j + 1);
      ratio *= -above / (16.0 * j * (n - j));
      terms[n - 2 * j] -= terms[n] * ratio;
    }
  }
};

template <int kDegree, Isa I>
DRUPE_INLINE Vec<float, I> by_pieces(const OddPieces<kDegree>& pieces, Vec<float, I> x) {
  using V = Vec<float, I>;
  const V scale = V::set(pieces.scale);
  const V a = min(V::set((OddPieces<kDegree>::kCount - 1) / pieces.scale), abs(x));  // min gives NaN where x is
  const V to_integer = V::set(12582912.f);  // 1.5 2^23: a sum with it ends in the integer's bits
  const V index = fma(a, scale, to_integer);
  const V r = fma(a, scale, to_integer - index);
  V y = lookup(pieces.coefficients[kDegree], index);
#pragma GCC unroll 8
  for (int k = kDegree - 1; k >= 0; --k) y = fma(y, r, lookup(pieces.coefficients[k], index));
  return copysign(y, x);
}

constexpr double exp_series(double x) {
  double sum = 1, term = 1;
  for (int n = 1; n < 150; ++n) sum += term *= x / n;
  return sum;
}

// Taylor's terms of P(X <= x) - 1/2 for a standard normal X, count of them.
constexpr void normal_terms(double x, double* terms, int count) {
  // φ(x) (x + x^3 / 3 + x^5 / (3 5) + …): all terms have one sign.
  double sum = 0, odd = x;
  for (int n = 1; n < 200; n += 2) sum += odd, odd *= x * x / (n + 2);
  double density = 0.39894228040143268 / exp_series(x * x / 2), before = 0;
  terms[0] = density * sum;
  double factorial = 1;
  for (int n = 1; n < count; ++n) {
    terms[n] = density / (factorial *= n);
    // The nth derivative of φ is -x times the one before, less n - 1 times the one before that.
    const double next = -x * density - (n - 1) * before;
    before = density, density = next;
  }
}

template <Isa>
inline constexpr OddPieces<3> kNormalCdf(5.6, 0.5, [](double x, auto& terms) { normal_terms(x, terms, 6); });

// The derivative of x P(X <= x), less 1/2: its nth term is (n + 1) a_n + x times (n + 1) a_(n + 1), where a_n are those
// of P(X <= x) - 1/2.
template <Isa>
inline constexpr OddPieces<4> kGeluDerivative(6.2, 0.5, [](double x, auto& terms) {
  double normal[8] = {};
  normal_terms(x, normal, 8);
  for (int n = 0; n < 7; ++n) terms[n] = (n + 1) * (normal[n] + x * normal[n + 1]);
});

template <Isa>
inline constexpr OddPieces<6> kTanh(9.1, 1, [](double x, auto& terms) {
  terms[0] = 1 - 2 / (exp_series(2 * x) + 1);
  for (int n = 0; n < 8; ++n) {  // the derivative is 1 - tanh^2
    double sum = n == 0;
    for (int k = 0; k <= n; ++k) sum -= terms[k] * terms[n - k];
    terms[n + 1] = sum / (n + 1);
  }
});

}  // namespace drupe::cpu
