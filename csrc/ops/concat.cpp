#include "ops/concat.h"

#include "core/check.h"
#include "ops/copy.h"

namespace drupe::ops {

Tensor concat(const std::vector<Tensor>& parts, std::int64_t axis) {
  check(!parts.empty(), "concat", "no tensors to join");
  const Tensor& first = parts.front();
  check(first.ndim() >= 1, "concat", "tensors of no dimensions cannot be joined: stack them");
  const int dim = normalize_dim(axis, first.ndim(), "concat");
  Dims shape = first.shape();
  shape[dim] = 0;
  for (const Tensor& part : parts) {
    check_type(part.dtype() == first.dtype(), "concat", "tensors are ", first.dtype(), " and ", part.dtype(),
               ": expected one dtype");
    common_device("concat", {&first, &part});
    Dims expected = first.shape();
    if (part.ndim() == first.ndim()) expected[dim] = part.size(dim);
    check(part.shape() == expected, "concat", "shapes ", first.shape(), " and ", part.shape(),
          " differ in more than axis ", dim);
    check(!__builtin_add_overflow(shape[dim], part.size(dim), &shape[dim]), "concat", "too many elements");
  }
  Tensor y = empty(shape, first.dtype(), first.device());
  std::int64_t begin = 0;
  for (const Tensor& part : parts) {
    copy_into(y.slice(dim, begin, begin + part.size(dim), 1), part);
    begin += part.size(dim);
  }
  return y;
}

Tensor pad(const Tensor& x, const Dims& before, const Dims& after, Scalar value) {
  check(before.size() == x.ndim() && after.size() == x.ndim(), "pad", "x is ", x.shape(), ", before is ", before,
        ", after is ", after, ": expected one width per dimension");
  Dims shape = x.shape();
  for (int i = 0; i < x.ndim(); ++i) {
    check(before[i] >= 0 && after[i] >= 0, "pad", "before is ", before, ", after is ", after,
          ": widths must not be negative");
    check(!__builtin_add_overflow(shape[i], before[i], &shape[i]) &&
              !__builtin_add_overflow(shape[i], after[i], &shape[i]),
          "pad", "before is ", before, ", after is ", after, ": too many elements");
  }
  // As arithmetic does: no float into integers.
  scalar("pad", value, x.dtype());
  Tensor y = full(shape, value, x.dtype(), x.device());
  Tensor inner = y;
  for (int i = 0; i < x.ndim(); ++i) inner = inner.slice(i, before[i], before[i] + x.size(i), 1);
  copy_into(inner, x);
  return y;
}

}  // namespace drupe::ops
