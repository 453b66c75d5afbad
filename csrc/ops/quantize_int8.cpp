#include "ops/quantize_int8.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"

namespace drupe::ops {

std::pair<Tensor, Tensor> quantize_int8(const Tensor& x, std::int64_t axis) {
  check_type(is_float(x.dtype()), "quantize_int8", "x is ", x.dtype(), ": expected a float dtype");
  check(x.ndim() >= 1, "quantize_int8", "x is (): expected at least 1 dimension");
  const int dim = normalize_dim(axis, x.ndim(), "quantize_int8");
  Dims order, back, rows;  // the axis last, and home again
  for (int d = 0; d < x.ndim(); ++d) {
    if (d != dim) order.push_back(d);
    if (d != dim) rows.push_back(x.size(d));
    back.push_back(d < dim ? d : d == dim ? x.ndim() - 1 : d - 1);
  }
  order.push_back(dim);
  const Tensor narrow = x.dtype() == Dtype::f64 ? cast(x, Dtype::f32) : x;
  const Tensor source = contiguous(narrow.permute(order));
  const Tensor q = empty(source.shape(), Dtype::i8, x.device());
  const Tensor scale = empty(rows, Dtype::f32, x.device());
  const QuantizeInt8Args args{.x = source.raw(),
                              .q = q.data<std::int8_t>(),
                              .scale = scale.data<float>(),
                              .rows = scale.numel(),
                              .size = x.size(dim),
                              .dtype = source.dtype()};
  if (args.rows > 0) {
    dispatch(
        x.device(), [&]<Isa I>() { cpu::quantize_int8<I>(args); },
        [&](auto stream) { cuda::quantize_int8(args, stream); });
  }
  return {q.permute(back), scale};
}

}  // namespace drupe::ops
