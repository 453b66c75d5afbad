#include "ops/cached_attention.h"

#include <algorithm>

#include "core/check.h"
#include "ops/copy.h"

namespace drupe::ops {
namespace {

constexpr const char* kOp = "cached_attention";

void write(const Tensor& cache, const Tensor& rows, const std::vector<std::int64_t>& starts) {
  const std::int64_t S = rows.size(2);
  if (starts.size() == 1) {
    copy_into(cache.slice(2, starts[0], starts[0] + S, 1), rows);
    return;
  }
  for (std::size_t b = 0; b < starts.size(); ++b) {
    const auto index = static_cast<std::int64_t>(b);
    copy_into(cache.select(0, index).slice(1, starts[b], starts[b] + S, 1), rows.select(0, index));
  }
}

}  // namespace

Tensor cached_attention(const Tensor& x, const Tensor& keys, const Tensor& values,
                        const std::vector<std::int64_t>& starts, const AttentionOptions& options) {
  check(keys.ndim() == 4, kOp, "keys is ", keys.shape(), ": expected (B, H, capacity, D)");
  check(values.shape() == keys.shape(), kOp, "keys is ", keys.shape(), ", values ", values.shape(),
        ": expected one shape");
  check(x.ndim() == 3 && x.size(0) == keys.size(0), kOp, "x is ", x.shape(), ", keys ", keys.shape(), ": expected (",
        keys.size(0), ", S, width)");
  check_type(x.dtype() == keys.dtype() && x.dtype() == values.dtype(), kOp, "x is ", x.dtype(), ", keys ", keys.dtype(),
             ", values ", values.dtype(), ": expected one dtype");
  common_device(kOp, {&x, &keys, &values});
  check_writable(keys, kOp, "keys");
  check_writable(values, kOp, "values");
  const std::int64_t B = x.size(0), S = x.size(1), width = x.size(2);
  const std::int64_t heads = keys.size(1), capacity = keys.size(2), D = keys.size(3);
  const std::int64_t queries = D > 0 ? width / D - 2 * heads : 0;
  check(queries > 0 && width % D == 0, kOp, "x is ", x.shape(), ": its width is not that of queries and of ", heads,
        " heads of keys and of values, of ", D, " each");
  check(starts.size() == 1 || static_cast<std::int64_t>(starts.size()) == B, kOp, starts.size(),
        " starts for a batch of ", B);
  const std::int64_t first = starts.empty() ? 0 : *std::min_element(starts.begin(), starts.end());
  const std::int64_t last = starts.empty() ? 0 : *std::max_element(starts.begin(), starts.end());
  check(first >= 0 && last <= capacity - S, kOp, S, " rows from ", first, " to ", last,
        " on, of a cache whose capacity is ", capacity);
  const std::int64_t end = last + S;

  const Tensor apart = reshape(x, {B, S, queries + 2 * heads, D}).permute({0, 2, 1, 3});  // (B, heads, S, D)
  write(keys, apart.slice(1, queries, queries + heads, 1), starts);
  write(values, apart.slice(1, queries + heads, queries + 2 * heads, 1), starts);
  const Tensor y = attention(apart.slice(1, 0, queries, 1), keys.slice(2, 0, end, 1), values.slice(2, 0, end, 1),
                             options)
                       .first;  // (B, queries, S, D)
  return reshape(y.permute({0, 2, 1, 3}), {B, S, queries * D});
}

}  // namespace drupe::ops
