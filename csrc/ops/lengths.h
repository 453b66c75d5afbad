// How much of each sequence of a batch counts.
#pragma once

#include "core/tensor.h"

namespace drupe::ops {

// (B,) int32 or int64 lengths, checked against [0, limit], as contiguous int64. A device is waited for; while a graph
// is captured the graph checks them instead (see index_range.h).
Tensor checked_lengths(const Tensor& lengths, std::int64_t B, std::int64_t limit, const char* what, const char* op);

}  // namespace drupe::ops
