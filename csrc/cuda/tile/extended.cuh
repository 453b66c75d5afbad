// Positive numbers m 2^e whose exponent is a number of its own: products of probabilities neither underflow nor need
// logarithms. m may grow or shrink by some bits before `normal` brings it back to [1, 2); kNever is the exponent of 0,
// and whatever lies near it counts as 0.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <platform/device.cuh>

namespace drupe::cuda {

template <class A>
inline constexpr A kNever = std::numeric_limits<A>::lowest() / 4;

template <class A>
struct FloatBits;
template <>
struct FloatBits<float> {
  using Word = std::uint32_t;
  static constexpr int kFraction = 23, kBias = 127, kLeast = -90;
};
template <>
struct FloatBits<double> {
  using Word = std::uint64_t;
  static constexpr int kFraction = 52, kBias = 1023, kLeast = -900;
};

// m 2^n for n up to 100. Far below 1 it need not be exact, only negligible and a normal number, also where n is
// -infinity or NaN.
template <class A>
__device__ __forceinline__ A scaled(A m, A n) {
  using Bits = FloatBits<A>;
  const int power = n > A(Bits::kLeast) ? static_cast<int>(n) : Bits::kLeast;
  return m * std::bit_cast<A>(static_cast<typename Bits::Word>(power + Bits::kBias) << Bits::kFraction);
}

template <class A>
struct Extended {
  A m, e;
  __device__ __forceinline__ static Extended zero() { return {A(0), kNever<A>}; }
};

template <class A>
__device__ __forceinline__ A larger(A a, A b) {
  return a > b ? a : b;
}
template <class A>
__device__ __forceinline__ Extended<A> operator+(Extended<A> a, Extended<A> b) {
  const A top = larger(a.e, b.e);
  return {scaled(a.m, a.e - top) + scaled(b.m, b.e - top), top};
}
template <class A>
__device__ __forceinline__ Extended<A> operator*(Extended<A> a, Extended<A> b) {
  return {a.m * b.m, a.e + b.e};
}
// NaN becomes 0.
template <class A>
__device__ __forceinline__ Extended<A> normal(Extended<A> a) {
  using Bits = FloatBits<A>;
  if (!(a.m > A(0))) return Extended<A>::zero();
  const auto word = std::bit_cast<typename Bits::Word>(a.m);
  constexpr auto kOne = static_cast<typename Bits::Word>(Bits::kBias) << Bits::kFraction;
  constexpr auto kMask = (typename Bits::Word{1} << Bits::kFraction) - 1;
  return {std::bit_cast<A>((word & kMask) | kOne),
          a.e + static_cast<A>(static_cast<int>(word >> Bits::kFraction) - Bits::kBias)};
}

// e^x for x <= 0, 0 at -infinity.
template <class A>
__device__ __forceinline__ Extended<A> extended_exp(A x) {
  if (!(x > kNever<A>)) return Extended<A>::zero();
  const A n = std::rint(x * A(1.4426950408889634));
  A r;
  if constexpr (sizeof(A) == 8) {
    r = std::fma(n, A(-0x1.62e42fee00000p-1), x);
    r = std::fma(n, A(-0x1.a39ef35793c76p-33), r);
  } else {
    r = std::fma(n, A(-0.693359375), x);
    r = std::fma(n, A(2.12194440e-4), r);
  }
  r = r > A(1) ? A(1) : r < A(-1) ? A(-1) : r;  // where steps between numbers are larger than 1, it is not what is left
  return {std::exp(r), n};
}

}  // namespace drupe::cuda
