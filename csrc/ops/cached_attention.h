// Attention of new tokens over a cache of keys and values, which they join first: what a decoder's layer does between
// its two projections. ops::attention, with
//
//   x        (B, S, (Hq + 2 Hkv) D)     q, k and v of S new tokens side by side, each with its heads side by side
//   keys     (B, Hkv, capacity, D)      k's rows are appended (append_rows.h)
//   values   the same                   v's
//   starts   where, as append_rows'
//   y        (B, S, Hq D)               over the keys and values 0 … max(start) + S - 1
#pragma once

#include <vector>

#include "ops/attention.h"

namespace drupe::ops {

Tensor cached_attention(const Tensor& x, const Tensor& keys, const Tensor& values,
                        const std::vector<std::int64_t>& starts, const AttentionOptions& options);

}  // namespace drupe::ops
