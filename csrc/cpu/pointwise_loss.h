// The sweeps of losses that are computed element by element. Sums go by blocks of 16384 elements, and the blocks' sums,
// in double precision, in order.
#pragma once

#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/lanes.h"
#include "ops/reduction.h"

namespace drupe::cpu {

inline constexpr std::int64_t kLossBlock = 16384;

// element(i, lanes) gives the losses at i, a Vec<T, I>; `loss` takes `size` results for "none", else one.
template <Isa I, class T, class Element>
void reduce_loss(std::int64_t size, Reduction reduction, T* loss, const Element& element) {
  using V = Vec<T, I>;
  if (reduction == Reduction::none) {
    parallel_ranges(size, kLossBlock, [&](std::int64_t begin, std::int64_t end) {
      for_vectors<I, T>(end - begin,
                        [&](std::int64_t i, auto lanes) { store(element(begin + i, lanes), loss + begin + i, lanes); });
    });
    return;
  }
  const std::int64_t blocks = (size + kLossBlock - 1) / kLossBlock;
  const Scratch<double> partial(static_cast<std::size_t>(blocks));
  parallel_ranges(size, kLossBlock, [&](std::int64_t begin, std::int64_t end) {
    T sum[1];
    sum_vectors<I>(end - begin, sum, [&](std::int64_t i, auto lanes, V(&terms)[1]) {
      terms[0] = terms[0] + only(element(begin + i, lanes), lanes);
    });
    partial[static_cast<std::size_t>(begin / kLossBlock)] = static_cast<double>(sum[0]);
  });
  double total = 0;
  for (std::int64_t block = 0; block < blocks; ++block) total += partial[static_cast<std::size_t>(block)];
  if (reduction == Reduction::mean && size > 0) total /= static_cast<double>(size);
  *loss = static_cast<T>(total);
}

// body(i, lanes, g) for each vector, with g = d(result) / d(the losses at i).
template <Isa I, class T, class Body>
void spread_loss(std::int64_t size, Reduction reduction, const T* dloss, const Body& body) {
  using V = Vec<T, I>;
  const bool each = reduction == Reduction::none;
  V whole = V::zero();
  if (!each) {
    const double share = reduction == Reduction::mean && size > 0 ? 1 / static_cast<double>(size) : 1;
    whole = V::set(static_cast<T>(static_cast<double>(*dloss) * share));
  }
  parallel_ranges(size, kLossBlock, [&](std::int64_t begin, std::int64_t end) {
    for_vectors<I, T>(end - begin, [&](std::int64_t i, auto lanes) {
      body(begin + i, lanes, each ? load<V>(dloss + begin + i, lanes) : whole);
    });
  });
}

}  // namespace drupe::cpu
