#include "core/loops.h"

#include <algorithm>
#include <cstdlib>
#include <limits>

namespace drupe {

Loops collapse(std::initializer_list<const Tensor*> tensors) {
  const Tensor& first = **tensors.begin();
  Dims order;
  for (int i = 0; i < first.ndim(); ++i) {
    if (first.size(i) != 1) order.push_back(i);
  }
  const auto speed = [&](std::int64_t dim) {
    const std::int64_t stride = std::abs(first.stride(static_cast<int>(dim)));
    return stride == 0 ? std::numeric_limits<std::int64_t>::max() : stride;
  };
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return speed(a) > speed(b); });
  Loops loops;
  for (std::int64_t sorted : order) {
    const int dim = static_cast<int>(sorted);
    const std::int64_t extent = first.size(dim);
    const int last = loops.shape.size() - 1;
    bool merges = last >= 0;
    for (std::size_t k = 0; merges && k < tensors.size(); ++k) {
      merges = loops.strides[k][last] == tensors.begin()[k]->stride(dim) * extent;
    }
    if (merges) {
      loops.shape[last] *= extent;
    } else {
      loops.shape.push_back(extent);
    }
    for (std::size_t k = 0; k < tensors.size(); ++k) {
      const std::int64_t stride = tensors.begin()[k]->stride(dim);
      if (merges) {
        loops.strides[k][last] = stride;
      } else {
        loops.strides[k].push_back(stride);
      }
    }
  }
  return loops;
}

}  // namespace drupe
