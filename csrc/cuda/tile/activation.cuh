// The activations on one element, in the accumulator's type: shared by the op and by the epilogues that fuse them.
#pragma once

#include <platform/device.cuh>

#include "ops/activation.h"

namespace drupe::cuda {

template <class A>
__device__ __forceinline__ A logistic(A x) {
  return A(1) / (A(1) + std::exp(-x));
}

// sqrt(2 / pi) (x + 0.044715 x^3), gelu_tanh's inner function: (1 + tanh u) / 2 = logistic(2 u).
template <class A>
__device__ __forceinline__ A gelu_inner(A x) {
  return A(0.79788456080286536) * x * (A(0.044715) * x * x + A(1));
}

template <Activation kA, class A>
__device__ __forceinline__ A activate(A x) {
  if constexpr (kA == Activation::relu) return x < A(0) ? A(0) : x;  // NaN passes
  if constexpr (kA == Activation::gelu) return A(0.5) * x * (A(1) + std::erf(x * A(0.70710678118654752)));
  if constexpr (kA == Activation::gelu_tanh) return x * logistic(A(2) * gelu_inner(x));
  if constexpr (kA == Activation::silu) return x * logistic(x);
  if constexpr (kA == Activation::sigmoid) return logistic(x);
  if constexpr (kA == Activation::tanh) return std::tanh(x);
  return x;
}

// f'(x); `s` is x where needs_input(kA), y = f(x) otherwise.
template <Activation kA, class A>
__device__ __forceinline__ A activation_derivative(A s) {
  if constexpr (kA == Activation::relu) return s > A(0) ? A(1) : A(0);
  if constexpr (kA == Activation::gelu) {
    const A cdf = A(0.5) * (A(1) + std::erf(s * A(0.70710678118654752)));
    const A density = A(0.39894228040143268) * std::exp(A(-0.5) * s * s);
    return s * density + cdf;
  }
  if constexpr (kA == Activation::gelu_tanh) {
    const A g = logistic(A(2) * gelu_inner(s));
    const A slope = A(0.79788456080286536) * (A(3 * 0.044715) * s * s + A(1));
    return g + A(2) * s * g * (A(1) - g) * slope;
  }
  if constexpr (kA == Activation::silu) {
    const A g = logistic(s);
    return g * (s * (A(1) - g) + A(1));
  }
  if constexpr (kA == Activation::sigmoid) return s * (A(1) - s);
  if constexpr (kA == Activation::tanh) return A(1) - s * s;
  return A(1);
}

}  // namespace drupe::cuda
