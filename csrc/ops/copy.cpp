#include "ops/copy.h"

#include "core/check.h"

namespace drupe::ops {
namespace {

// Drops extents of 1 and merges neighbours that both tensors walk as one; sorts by dst's strides, largest
// first.
CopyArgs plan(const Tensor& dst, const Tensor& src) {
  CopyArgs args{.src = src.raw(),
                .dst = dst.raw(),
                .shape = {},
                .src_strides = {},
                .dst_strides = {},
                .src_dtype = src.dtype(),
                .dst_dtype = dst.dtype()};
  Dims order;
  for (int i = 0; i < dst.ndim(); ++i) {
    if (dst.size(i) != 1) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return std::abs(dst.stride(static_cast<int>(a))) > std::abs(dst.stride(static_cast<int>(b)));
  });
  for (std::int64_t dim : order) {
    const std::int64_t extent = dst.size(static_cast<int>(dim));
    const std::int64_t from = src.stride(static_cast<int>(dim));
    const std::int64_t to = dst.stride(static_cast<int>(dim));
    const int last = args.shape.size() - 1;
    if (last >= 0 && args.src_strides[last] == from * extent && args.dst_strides[last] == to * extent) {
      args.shape[last] *= extent;
      args.src_strides[last] = from;
      args.dst_strides[last] = to;
    } else {
      args.shape.push_back(extent);
      args.src_strides.push_back(from);
      args.dst_strides.push_back(to);
    }
  }
  return args;
}

}  // namespace

void copy_into(const Tensor& dst, const Tensor& src) {
  check_writable(dst, "copy", "the destination");
  common_device("copy", {&dst, &src});
  if (dst.numel() == 0) return;
  const CopyArgs args = plan(dst, src.broadcast_to(dst.shape()));
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
