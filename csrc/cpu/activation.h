// The activations on vectors: shared by the op and by the epilogues that fuse them.
#pragma once

#include "cpu/simd_math.h"
#include "ops/activation.h"

namespace drupe::cpu {

template <Activation A, class T, Isa I>
DRUPE_INLINE Vec<T, I> activate(Vec<T, I> x) {
  using V = Vec<T, I>;
  if constexpr (A == Activation::relu) return max(V::zero(), x);  // NaN passes: max gives its second operand
  if constexpr (A == Activation::gelu) return x * normal_cdf(x);
  if constexpr (A == Activation::gelu_tanh) {
    const V inner = V::set(T(0.79788456080286536)) * x * fma(V::set(T(0.044715)) * x, x, V::set(1));
    return V::set(T(0.5)) * x * (V::set(1) + tanh(inner));
  }
  if constexpr (A == Activation::silu) return x * sigmoid(x);
  if constexpr (A == Activation::sigmoid) return sigmoid(x);
  if constexpr (A == Activation::tanh) return tanh(x);
  return x;
}

// f'(x); `s` is x where needs_input(A), y = f(x) otherwise.
template <Activation A, class T, Isa I>
DRUPE_INLINE Vec<T, I> activation_derivative(Vec<T, I> s) {
  using V = Vec<T, I>;
  const V one = V::set(1);
  if constexpr (A == Activation::relu) return select(V::zero() < s, one, V::zero());
  if constexpr (A == Activation::gelu && std::is_same_v<T, float> && kHasLookup<I>) {
    return V::set(0.5f) + by_pieces(kGeluDerivative<I>, s);
  } else if constexpr (A == Activation::gelu) {
    const V density = V::set(T(0.39894228040143268)) * exp(V::set(T(-0.5)) * s * s);
    return fma(s, density, normal_cdf(s));
  }
  if constexpr (A == Activation::gelu_tanh) {
    const V s2 = s * s;
    const V t = tanh(V::set(T(0.79788456080286536)) * s * fma(V::set(T(0.044715)), s2, one));
    const V inner = V::set(T(0.79788456080286536)) * fma(V::set(T(3 * 0.044715)), s2, one);
    return V::set(T(0.5)) * (one + t + s * (one - t * t) * inner);
  }
  if constexpr (A == Activation::silu) {
    const V g = sigmoid(s);
    return g * fma(s, one - g, one);
  }
  if constexpr (A == Activation::sigmoid) return s * (one - s);
  if constexpr (A == Activation::tanh) return one - s * s;
  return one;
}

}  // namespace drupe::cpu
