#include "ops/copy.h"

#include "core/check.h"
#include "core/loops.h"

namespace drupe::ops {
void copy_into(const Tensor& dst, const Tensor& src) {
  check_writable(dst, "copy", "the destination");
  common_device("copy", {&dst, &src});
  if (dst.numel() == 0) return;
  const Tensor from = src.broadcast_to(dst.shape());
  const Loops loops = collapse({&dst, &from});
  const CopyArgs args{.src = from.raw(),
                      .dst = dst.raw(),
                      .shape = loops.shape,
                      .src_strides = loops.strides[1],
                      .dst_strides = loops.strides[0],
                      .src_dtype = src.dtype(),
                      .dst_dtype = dst.dtype()};
  dispatch_isa([&]<Isa I>() { cpu::copy<I>(args); });
}

Tensor clone(const Tensor& x) {
  Tensor y = empty(x.shape(), x.dtype(), x.device());
  copy_into(y, x);
  return y;
}

Tensor contiguous(const Tensor& x) {
  return x.is_contiguous() ? x : clone(x);
}

Tensor cast(const Tensor& x, Dtype dtype) {
  if (x.dtype() == dtype) return x;
  Tensor y = empty_like(x, dtype);
  copy_into(y, x);
  return y;
}

Tensor reshape(const Tensor& x, const Dims& shape) {
  if (auto view = x.try_reshape(shape)) return *view;
  return *clone(x).try_reshape(shape);
}

}  // namespace drupe::ops
