#include "ops/softmax.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"

namespace drupe::ops {
namespace {

SoftmaxArgs plan(const Tensor& x, int axis, bool log) {
  SoftmaxArgs args{.x = x.raw(),
                   .dy = nullptr,
                   .y = nullptr,
                   .outer = 1,
                   .size = x.size(axis),
                   .inner = 1,
                   .log = log,
                   .dtype = x.dtype()};
  for (int i = 0; i < axis; ++i) args.outer *= x.size(i);
  for (int i = axis + 1; i < x.ndim(); ++i) args.inner *= x.size(i);
  return args;
}

}  // namespace

Tensor softmax(const Tensor& x, std::int64_t axis, bool log) {
  const char* op = log ? "log_softmax" : "softmax";
  check_type(is_float(x.dtype()), op, "x is ", x.dtype(), ": expected a float dtype");
  const int dim = normalize_dim(axis, x.ndim(), op);
  const Tensor source = contiguous(x);
  Tensor y = empty(x.shape(), x.dtype(), x.device());
  if (y.numel() == 0) return y;
  SoftmaxArgs args = plan(source, dim, log);
  args.y = y.raw();
  dispatch(x.device(), [&]<Isa I>() { cpu::softmax<I>(args); }, [&](auto stream) { cuda::softmax(args, stream); });
  return y;
}

Tensor softmax_backward(const Tensor& dy, const Tensor& y, std::int64_t axis, bool log) {
  const char* op = log ? "log_softmax_backward" : "softmax_backward";
  check_type(is_float(y.dtype()) && y.dtype() == dy.dtype(), op, "dy is ", dy.dtype(), ", y is ", y.dtype(),
             ": expected one float dtype");
  check(dy.shape() == y.shape(), op, "dy is ", dy.shape(), ", y is ", y.shape());
  common_device(op, {&dy, &y});
  const int dim = normalize_dim(axis, y.ndim(), op);
  const Tensor saved = contiguous(y), gradient = contiguous(dy);
  Tensor dx = empty(y.shape(), y.dtype(), y.device());
  if (dx.numel() == 0) return dx;
  SoftmaxArgs args = plan(saved, dim, log);
  args.dy = gradient.raw();
  args.y = dx.raw();
  dispatch(
      y.device(), [&]<Isa I>() { cpu::softmax_backward<I>(args); },
      [&](auto stream) { cuda::softmax_backward(args, stream); });
  return dx;
}

}  // namespace drupe::ops
