#include "ops/copy.h"

#include <cstdint>
#include <memory>
#include <utility>

#include "core/check.h"
#include "core/loops.h"
#include "ops/backend.h"

namespace drupe::ops {
namespace {

struct Bytes {
  std::uintptr_t begin, end;
};

// From the first to past the last byte of any element.
Bytes bytes_of(const Tensor& tensor) {
  const auto itemsize = static_cast<std::int64_t>(size_of(tensor.dtype()));
  std::int64_t first = 0, last = 0;
  for (int i = 0; i < tensor.ndim(); ++i) {
    const std::int64_t reach = (tensor.size(i) - 1) * tensor.stride(i);
    (reach < 0 ? first : last) += reach;
  }
  const auto base = reinterpret_cast<std::uintptr_t>(tensor.raw());
  return {base + static_cast<std::uintptr_t>(first * itemsize),
          base + static_cast<std::uintptr_t>((last + 1) * itemsize)};
}

// True where writing one element of dst could change another element of src before it is read.
bool overlaps(const Tensor& dst, const Tensor& src) {
  if (src.numel() == 0) return false;
  const bool same = dst.raw() == src.raw() && dst.dtype() == src.dtype() && dst.shape() == src.shape() &&
                    dst.strides() == src.strides();
  const Bytes to = bytes_of(dst), from = bytes_of(src);
  return !same && to.begin < from.end && from.begin < to.end;
}

Tensor empty_pinned(const Dims& shape, Dtype dtype, int device) {
  const auto bytes = static_cast<std::size_t>(checked_numel(shape, "pin")) * size_of(dtype);
  std::shared_ptr<void> block = cuda::allocate_pinned(bytes, device);
  void* data = block.get();
  return Tensor(std::move(block), data, shape, contiguous_strides(shape), dtype);
}

}  // namespace

void copy_into(const Tensor& dst, const Tensor& src) {
  check_writable(dst, "copy", "the destination");
  const Device device = common_device("copy", {&dst, &src});
  if (dst.numel() == 0) return;
  const Tensor from = (overlaps(dst, src) ? clone(src) : src).broadcast_to(dst.shape());
  const Loops loops = collapse({&dst, &from});
  const CopyArgs args{.src = from.raw(),
                      .dst = dst.raw(),
                      .shape = loops.shape,
                      .src_strides = loops.strides[1],
                      .dst_strides = loops.strides[0],
                      .src_dtype = src.dtype(),
                      .dst_dtype = dst.dtype()};
  dispatch(device, [&]<Isa I>() { cpu::copy<I>(args); }, [&](auto stream) { cuda::copy(args, stream); });
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

Tensor to_device(const Tensor& x, Device device, bool non_blocking) {
  if (x.device() == device) return x;
  if (device.type == DeviceType::cuda) cuda::check_available(device);
  const Tensor source = is_dense(x) ? x : contiguous(x);  // what is dense keeps its memory order
  const bool to_host = device.type == DeviceType::cpu;
  const Tensor y = to_host && non_blocking ? empty_pinned(x.shape(), x.dtype(), x.device().index)
                                           : empty(x.shape(), x.dtype(), device);
  if (const Tensor& host = to_host ? y : source; non_blocking && cuda::is_pinned(host.owner())) {
    const Tensor& there = to_host ? source : y;
    cuda::copy_pinned(y.raw(), source.raw(), x.nbytes(), host.owner(), there.device().index);
    cuda::record_use(there.owner(), cuda::current_stream(there.device().index));
  } else {
    cuda::copy_bytes(y.raw(), device, source.raw(), x.device(), x.nbytes());
  }
  return Tensor(y.owner(), y.raw(), x.shape(), source.strides(), x.dtype(), device);
}

Tensor pin(const Tensor& x, int device) {
  check(x.device().type == DeviceType::cpu, "pin", "the tensor lies on ", x.device(), ": only the host's is locked");
  cuda::check_available({DeviceType::cuda, device});
  if (cuda::is_pinned(x.owner())) return x;
  const Tensor y = empty_pinned(x.shape(), x.dtype(), device);
  const Tensor ordered = is_dense(x) ? Tensor(y.owner(), y.raw(), x.shape(), x.strides(), x.dtype()) : y;
  copy_into(ordered, x);
  return ordered;
}

Tensor reshape(const Tensor& x, const Dims& shape) {
  if (auto view = x.try_reshape(shape)) return *view;
  return *clone(x).try_reshape(shape);
}

}  // namespace drupe::ops
