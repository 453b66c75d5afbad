// Rows written into a cache in place.
//
//   cache   (B, H, capacity, D)  rows start[b] … start[b] + S - 1 become `rows`
//   rows    (B, H, S, D)         any strides
//   starts  one for the whole batch, or one for each of its B elements
//   result  (B, H, n, D)         a view of the cache, n = max(start) + S
#pragma once

#include <vector>

#include "core/tensor.h"

namespace drupe::ops {

// `op` is who asks, for errors, which come before anything is written.
Tensor append_rows(const Tensor& cache, const Tensor& rows, const std::vector<std::int64_t>& starts,
                   const char* op = "append_rows");

}  // namespace drupe::ops
