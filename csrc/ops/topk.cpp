#include "ops/topk.h"

#include <cstring>

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/index_range.h"

namespace drupe::ops {
namespace {

// The axis moved to the end; the result's owner may be x's.
Tensor with_axis_last(const Tensor& x, int axis) {
  Dims order;
  for (int i = 0; i < x.ndim(); ++i) {
    if (i != axis) order.push_back(i);
  }
  order.push_back(axis);
  return contiguous(x.permute(order));
}

// The inverse of the permutation above, as a view.
Tensor with_last_at(const Tensor& x, int axis) {
  Dims order;
  for (int i = 0; i + 1 < x.ndim(); ++i) order.push_back(i);
  order.insert(axis, x.ndim() - 1);
  return x.permute(order);
}

Dims with_last_extent(Dims shape, std::int64_t extent) {
  shape[shape.size() - 1] = extent;
  return shape;
}

}  // namespace

std::pair<Tensor, Tensor> topk(const Tensor& x, std::int64_t k, std::int64_t axis, bool largest, bool sorted) {
  check(x.ndim() >= 1, "topk", "x is ", x.shape(), ": expected at least 1 dimension");
  const int dim = normalize_dim(axis, x.ndim(), "topk");
  check(k >= 0 && k <= x.size(dim), "topk", "k is ", k, ", x is ", x.shape(), ": expected 0 to ", x.size(dim));
  const Tensor source = with_axis_last(x, dim);
  const Dims shape = with_last_extent(source.shape(), k);
  Tensor values = empty(shape, x.dtype(), x.device());
  Tensor indices = empty(shape, Dtype::i64, x.device());
  if (values.numel() > 0) {
    const TopkArgs args{.x = source.raw(),
                        .values = values.raw(),
                        .indices = indices.data<std::int64_t>(),
                        .rows = values.numel() / k,
                        .size = x.size(dim),
                        .k = k,
                        .largest = largest,
                        .sorted = sorted,
                        .dtype = x.dtype()};
    dispatch(x.device(), [&]<Isa I>() { cpu::topk<I>(args); }, [&](auto stream) { cuda::topk(args, stream); });
  }
  return {with_last_at(values, dim), with_last_at(indices, dim)};
}

Tensor topk_backward(const Tensor& dy, const Tensor& indices, std::int64_t axis, std::int64_t size) {
  const char* op = "topk_backward";
  check(dy.shape() == indices.shape(), op, "dy is ", dy.shape(), ", indices are ", indices.shape());
  check_type(is_float(dy.dtype()) && indices.dtype() == Dtype::i64, op, "dy is ", dy.dtype(), ", indices are ",
             indices.dtype(), ": expected a float dtype and int64");
  const Device device = common_device(op, {&dy, &indices});
  const int dim = normalize_dim(axis, dy.ndim(), op);
  const Tensor gradient = with_axis_last(dy, dim);
  Tensor where = with_axis_last(indices, dim);
  const auto refuse = [=](std::int64_t index, std::int64_t) {
    fail<std::out_of_range>(op, "index ", index, " is out of range for extent ", size);
  };
  if (cuda::is_capturing(device)) {
    check_index(size > 0 || where.numel() == 0, op, "indices are ", where.shape(), " into extent ", size);
    where = defer_range_check(where, size, {}, refuse);
  } else if (const auto wrong = first_out_of_range(where, size)) {
    refuse(wrong->index, wrong->position);
  }
  const Tensor dx = zeros(with_last_extent(gradient.shape(), size), dy.dtype(), dy.device());
  if (dy.numel() > 0) {
    const TopkBackwardArgs args{.dy = gradient.raw(),
                                .indices = where.data<std::int64_t>(),
                                .dx = dx.raw(),
                                .rows = dy.numel() / dy.size(dim),
                                .size = size,
                                .k = dy.size(dim),
                                .dtype = dy.dtype()};
    dispatch(
        device, [&]<Isa I>() { cpu::topk_backward<I>(args); }, [&](auto stream) { cuda::topk_backward(args, stream); });
  }
  return with_last_at(dx, dim);
}

Tensor arg_extremum(const std::string& name, const Tensor& x, std::int64_t axis, bool keepdims) {
  const char* op = name.c_str();
  check(name == "argmax" || name == "argmin", "arg_extremum", "\"", name, "\": expected argmax or argmin");
  const int dim = normalize_dim(axis, x.ndim(), op);
  check(x.size(dim) > 0, op, "x is ", x.shape(), ": no elements along axis ", dim);
  const Tensor source = with_axis_last(x, dim);
  Dims shape = x.shape();
  shape.erase(dim);
  Tensor y = empty(shape, Dtype::i64, x.device());
  if (y.numel() > 0) {
    const ArgExtremumArgs args{.x = source.raw(),
                               .indices = y.data<std::int64_t>(),
                               .rows = y.numel(),
                               .size = x.size(dim),
                               .largest = name == "argmax",
                               .dtype = x.dtype()};
    dispatch(
        x.device(), [&]<Isa I>() { cpu::arg_extremum<I>(args); },
        [&](auto stream) { cuda::arg_extremum(args, stream); });
  }
  return keepdims ? y.unsqueeze(dim) : y;
}

}  // namespace drupe::ops
