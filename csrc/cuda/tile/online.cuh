// The sum of exponentials of a row in one sweep (Milakov & Gimelshein 2018, "Online normalizer calculation for
// softmax").
#pragma once

#include <cmath>
#include <limits>

#include "cuda/tile/reduce.cuh"

namespace drupe::cuda {

// The maximum so far and the sum of e^(x - top). It starts at the lowest number, so that nothing is subtracted from
// itself at infinity before there is one in the row.
template <class A>
struct Online {
  A top = std::numeric_limits<A>::lowest();
  A sum = A(0);

  __device__ __forceinline__ void raise(A other) {
    if (other <= top) return;
    const A higher = Maximum{}(top, other);
    sum *= std::exp(top - higher);
    top = higher;
  }
  __device__ __forceinline__ void merge(const Online& other) {
    const A theirs = other.top;
    raise(theirs);
    sum += other.sum * std::exp(theirs - top);
  }
};

}  // namespace drupe::cuda
