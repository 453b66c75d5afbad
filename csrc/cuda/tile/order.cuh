// Elements of any dtype as unsigned integers in the same order.
#pragma once

#include <bit>
#include <cstdint>
#include <platform/device.cuh>
#include <type_traits>

namespace drupe::cuda {

template <class T>
using OrderKey = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;

// NaN is above all numbers; -0 and 0 are equal.
template <class T>
__device__ __forceinline__ OrderKey<T> order_key(T stored) {
  using K = OrderKey<T>;
  constexpr K kTop = K(1) << (8 * sizeof(K) - 1);
  if constexpr (std::is_floating_point_v<Accumulator<T>>) {
    const auto x = widen(stored);
    if (x != x) return ~K(0);
    const auto bits = std::bit_cast<K>(x + decltype(x)(0));
    return (bits & kTop) != 0 ? ~bits : bits | kTop;
  } else {
    return static_cast<K>(static_cast<std::int64_t>(stored)) ^ kTop;
  }
}

// An element of a row by its rank: the greater key first, of equal ones the lower index.
template <class K>
struct Ranked {
  K key;
  std::int64_t index;

  // After every element.
  __device__ __forceinline__ static Ranked last() { return {K(0), INT64_MAX}; }
  __device__ __forceinline__ bool before(const Ranked& other) const {
    return key > other.key || (key == other.key && index < other.index);
  }
};

// The first of a segment of `lanes` lanes; all of them get it.
template <class K>
__device__ __forceinline__ Ranked<K> first_of_lanes(Ranked<K> own, int lanes) {
  for (int by = lanes / 2; by > 0; by /= 2) {
    const Ranked<K> other{__shfl_xor_sync(kFullMask, own.key, by), __shfl_xor_sync(kFullMask, own.index, by)};
    if (other.before(own)) own = other;
  }
  return own;
}

}  // namespace drupe::cuda
