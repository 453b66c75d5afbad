#include "ops/cached_attention.h"

#include "core/check.h"
#include "ops/append_rows.h"
#include "ops/copy.h"

namespace drupe::ops {

Tensor cached_attention(const Tensor& x, const Tensor& keys, const Tensor& values,
                        const std::vector<std::int64_t>& starts, const AttentionOptions& options) {
  constexpr const char* kOp = "cached_attention";
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
  const std::int64_t heads = keys.size(1), D = keys.size(3);
  const std::int64_t queries = D > 0 ? width / D - 2 * heads : 0;
  check(queries > 0 && width % D == 0, kOp, "x is ", x.shape(), ": its width is not that of queries and of ", heads,
        " heads of keys and of values, of ", D, " each");

  const Tensor apart = reshape(x, {B, S, queries + 2 * heads, D}).permute({0, 2, 1, 3});  // (B, heads, S, D)
  const Tensor k = append_rows(keys, apart.slice(1, queries, queries + heads, 1), starts, kOp);
  const Tensor v = append_rows(values, apart.slice(1, queries + heads, queries + 2 * heads, 1), starts, kOp);
  const Tensor y = attention(apart.slice(1, 0, queries, 1), k, v, options).first;  // (B, queries, S, D)
  return reshape(y.permute({0, 2, 1, 3}), {B, S, queries * D});
}

}  // namespace drupe::ops
