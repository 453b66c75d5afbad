// Loops over a row of any length in whole vectors and one rest, written once: the body takes a tag that says which.
#pragma once

#include <algorithm>

#include "core/caches.h"
#include "cpu/simd_bf16.h"

namespace drupe::cpu {

struct AllLanes {};
struct FirstLanes {
  int count;
};

template <class V, class S>
DRUPE_INLINE V load(const S* p, AllLanes) {
  return V::load(p);
}
template <class V, class S>
DRUPE_INLINE V load(const S* p, FirstLanes lanes) {
  return V::load(p, lanes.count);
}
template <class V, class S>
DRUPE_INLINE void store(V v, S* p, AllLanes) {
  v.store(p);
}
template <class V, class S>
DRUPE_INLINE void store(V v, S* p, FirstLanes lanes) {
  v.store(p, lanes.count);
}

// v with zeros in the lanes that do not count.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> only(Vec<T, I> v, AllLanes) {
  return v;
}
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> only(Vec<T, I> v, FirstLanes lanes) {
  T values[Vec<T, I>::kLanes];
  v.store(values);
  return Vec<T, I>::load(values, lanes.count);
}

// body(i, lanes) for each vector of [0, size).
template <Isa I, class T, class Body>
DRUPE_INLINE void for_vectors(std::int64_t size, Body&& body) {
  constexpr int kLanes = Vec<T, I>::kLanes;
  std::int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, AllLanes{});
  if (i < size) body(i, FirstLanes{static_cast<int>(size - i)});
}

// Whether a result of `size` elements is too large to be found in cache by whoever reads it next, who has more to read
// and write than this, and had better go past it. Only full registers of T itself can.
template <class S>
DRUPE_INLINE bool passes_caches(std::int64_t size) {
  return std::is_same_v<S, Accumulator<S>> && size * static_cast<std::int64_t>(sizeof(S)) > caches().l3 / 2;
}

// out[i] = value(i, lanes) for i in [0, size). With `stream`, past the caches: then the caller owes a stream_fence.
// Two whole vectors of bfloat16 at a time are rounded by instruction, if there is one, subnormals to zero.
template <Isa I, class S, class Value>
DRUPE_INLINE void write_vectors(S* out, std::int64_t size, const Value& value, bool stream) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  std::int64_t begin = 0;
  if constexpr (std::is_same_v<S, T>) {
    if (stream) {
      constexpr std::int64_t kBytes = V::kLanes * sizeof(T);
      const auto past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(out) % kBytes);
      const std::int64_t head = std::min(size, (kBytes - past) % kBytes / static_cast<std::int64_t>(sizeof(T)));
      const FirstLanes lanes{static_cast<int>(head)};
      if (head > 0) store(value(0, lanes), out, lanes);
      for (begin = head; begin + V::kLanes <= size; begin += V::kLanes) value(begin, AllLanes{}).stream(out + begin);
    }
  }
  if constexpr (kPairs<I, S>) {
    if (has_bf16_dot<I>()) {
      for (; begin + 2 * V::kLanes <= size; begin += 2 * V::kLanes) {
        const V pairs = PairProduct<I>::pair(value(begin, AllLanes{}), value(begin + V::kLanes, AllLanes{}));
        pairs.store(reinterpret_cast<T*>(out + begin));
      }
    }
  }
  for_vectors<I, T>(size - begin,
                    [&](std::int64_t i, auto lanes) { store(value(begin + i, lanes), out + begin + i, lanes); });
}

// sums[t] = the sum over [0, size) of what body(i, lanes, partial) adds to the vector partial[t]. Four partial vectors
// a term hide the latency of the addition; no lane adds up more than 64 terms before the sum goes on elsewhere, which
// bounds the error.
template <Isa I, class T, int kTerms, class Body>
DRUPE_INLINE void sum_vectors(std::int64_t size, T (&sums)[kTerms], Body&& body) {
  using V = Vec<T, I>;
  constexpr int kPartials = 4;
  constexpr std::int64_t kStretch = 64 * kPartials * V::kLanes;
  for (T& sum : sums) sum = T(0);
  for (std::int64_t begin = 0; begin < size; begin += kStretch) {
    const std::int64_t end = std::min(size, begin + kStretch);
    V partial[kPartials][kTerms];  // in registers, for which all its indices must be constants
#pragma GCC unroll 4
    for (int p = 0; p < kPartials; ++p) {
#pragma GCC unroll 4
      for (int t = 0; t < kTerms; ++t) partial[p][t] = V::zero();
    }
    std::int64_t i = begin;
    for (; i + kPartials * V::kLanes <= end; i += kPartials * V::kLanes) {
#pragma GCC unroll 4
      for (int p = 0; p < kPartials; ++p) body(i + p * V::kLanes, AllLanes{}, partial[p]);
    }
    for (; i + V::kLanes <= end; i += V::kLanes) body(i, AllLanes{}, partial[0]);
    if (i < end) body(i, FirstLanes{static_cast<int>(end - i)}, partial[0]);
#pragma GCC unroll 4
    for (int t = 0; t < kTerms; ++t) {
      sums[t] += reduce_add((partial[0][t] + partial[1][t]) + (partial[2][t] + partial[3][t]));
    }
  }
}

}  // namespace drupe::cpu
