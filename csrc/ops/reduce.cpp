#include "ops/reduce.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/fill.h"

namespace drupe::ops {
namespace {

constexpr std::int64_t kOutermost = std::numeric_limits<std::int64_t>::max();

struct Axes {
  Dims reduced, kept;
  std::int64_t count = 1;  // elements per result
};

Axes split_axes(const Tensor& x, const Dims& axes, const char* op) {
  Dims is_reduced = Dims::filled(x.ndim(), axes.empty() ? 1 : 0);
  for (std::int64_t axis : axes) {
    const int dim = normalize_dim(axis, x.ndim(), op);
    check(is_reduced[dim]++ == 0, op, "axes are ", axes, ": axis ", dim, " is named twice");
  }
  Axes split;
  for (int i = 0; i < x.ndim(); ++i) {
    (is_reduced[i] ? split.reduced : split.kept).push_back(i);
    if (is_reduced[i]) split.count *= x.size(i);
  }
  return split;
}

// Slowest first. A broadcast dimension goes outermost: the one of stride 1 shall be the innermost.
void sort_by_stride(Dims& dims, const Tensor& x) {
  const auto key = [&](std::int64_t dim) {
    const std::int64_t stride = std::abs(x.stride(static_cast<int>(dim)));
    return stride == 0 ? kOutermost : stride;
  };
  std::stable_sort(dims.begin(), dims.end(), [&](std::int64_t a, std::int64_t b) { return key(a) > key(b); });
}

// The strides of a dense tensor of this shape whose dimensions follow one another in memory as in `order`.
Dims strides_in_order(const Dims& shape, const Dims& order) {
  Dims strides = Dims::filled(shape.size(), 0);
  std::int64_t stride = 1;
  for (int i = order.size() - 1; i >= 0; --i) {
    strides[static_cast<int>(order[i])] = stride;
    stride *= shape[static_cast<int>(order[i])];
  }
  return strides;
}

// The innermost of these that is no broadcast or single element steps by 1.
bool ends_in_stride_1(const Dims& dims, const Tensor& x) {
  for (int i = dims.size() - 1; i >= 0; --i) {
    const int dim = static_cast<int>(dims[i]);
    if (x.size(dim) != 1) return x.stride(dim) == 1;
  }
  return false;
}

Tensor view_of(const Tensor& x, const Dims& dims) {
  Dims shape, strides;
  for (std::int64_t dim : dims) {
    shape.push_back(x.size(static_cast<int>(dim)));
    strides.push_back(x.stride(static_cast<int>(dim)));
  }
  return Tensor(x.owner(), x.raw(), shape, strides, x.dtype(), x.device());
}

struct Work {
  Reduction op;
  Dtype y_dtype;
  Finish finish = Finish::none;
  double divisor = 1;
  const Tensor* shift = nullptr;  // what an earlier call gave for the same x and axes
};

// y has x's shape with reduced extents of 1, its kept dimensions in x's memory order. x and the results are not empty.
Tensor run(const Tensor& given, Axes axes, const Work& work) {
  Tensor x = given;
  sort_by_stride(axes.kept, x);
  sort_by_stride(axes.reduced, x);
  bool columns = ends_in_stride_1(axes.kept, x);
  if (!columns && !ends_in_stride_1(axes.reduced, x) && x.numel() > 1) {
    x = clone(x);
    std::sort(axes.kept.begin(), axes.kept.end());
    std::sort(axes.reduced.begin(), axes.reduced.end());
    columns = ends_in_stride_1(axes.kept, x);
  }
  Dims order = axes.reduced;
  for (std::int64_t dim : axes.kept) order.push_back(dim);
  Dims shape = x.shape();
  for (std::int64_t dim : axes.reduced) shape[static_cast<int>(dim)] = 1;
  const Tensor fresh = empty(shape, work.y_dtype, x.device());
  const Tensor y(fresh.owner(), fresh.raw(), shape, strides_in_order(shape, order), work.y_dtype, x.device());

  // Sorted by y's strides, which have x's order.
  const Tensor kept_y = view_of(y, axes.kept);
  const Tensor kept_x = view_of(x, axes.kept);
  const Tensor reduced = view_of(x, axes.reduced);
  Loops kept = collapse({&kept_y, &kept_x});
  std::swap(kept.strides[0], kept.strides[1]);
  const ReduceArgs args{.x = x.raw(),
                        .y = y.raw(),
                        .shift = work.shift ? work.shift->raw() : nullptr,
                        .kept = kept,
                        .reduced = collapse({&reduced}),
                        .columns = columns,
                        .dtype = x.dtype(),
                        .y_dtype = work.y_dtype,
                        .op = work.op,
                        .finish = work.finish,
                        .divisor = work.divisor};
  dispatch(x.device(), [&]<Isa I>() { cpu::reduce<I>(args); }, [&](auto stream) { cuda::reduce(args, stream); });
  return y;
}

Tensor drop(Tensor y, const Dims& axes, bool keepdims) {
  if (keepdims) return y;
  Dims sorted = axes;
  std::sort(sorted.begin(), sorted.end());
  for (int i = sorted.size() - 1; i >= 0; --i) y = y.squeeze(static_cast<int>(sorted[i]));
  return y;
}

Tensor constant(const Tensor& x, const Axes& axes, Scalar value, Dtype dtype) {
  Dims shape = x.shape();
  for (std::int64_t dim : axes.reduced) shape[static_cast<int>(dim)] = 1;
  return full(shape, value, dtype, x.device());
}

void check_float(const Tensor& x, const char* op) {
  check_type(is_float(x.dtype()), op, "x is ", x.dtype(), ": expected a float dtype");
}

Tensor extremum(const Tensor& x, const Axes& axes, Reduction op, Dtype y_dtype, const char* name) {
  check(axes.count > 0, name, "x is ", x.shape(), ": no elements along the axes ", axes.reduced);
  if (x.numel() == 0) return constant(x, axes, std::int64_t{0}, y_dtype);
  return run(x, axes, {.op = op, .y_dtype = y_dtype});
}

// `over_nothing` is the result over no elements; there may be no results either.
Tensor accumulate(const Tensor& x, const Axes& axes, const Work& work, Scalar over_nothing) {
  if (x.numel() == 0) return constant(x, axes, over_nothing, work.y_dtype);
  return run(x, axes, work);
}

Tensor log_sum_exp(const Tensor& x, const Axes& axes) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (x.numel() == 0) return constant(x, axes, -kInfinity, x.dtype());
  const Tensor shift = run(x, axes, {.op = Reduction::max, .y_dtype = accumulator_of(x.dtype())});
  return run(x, axes, {.op = Reduction::sum_exp, .y_dtype = x.dtype(), .finish = Finish::log_shift, .shift = &shift});
}

}  // namespace

Tensor reduce(const std::string& name, const Tensor& x, const Dims& dims, bool keepdims) {
  const char* op = name.c_str();
  const Axes axes = split_axes(x, dims, op);
  const Dtype dtype = x.dtype();
  const Dtype wide = is_float(dtype) ? dtype : Dtype::i64;
  const auto result = [&]() -> Tensor {
    if (name == "sum") return accumulate(x, axes, {.op = Reduction::sum, .y_dtype = wide}, std::int64_t{0});
    if (name == "prod") return accumulate(x, axes, {.op = Reduction::prod, .y_dtype = wide}, std::int64_t{1});
    if (name == "any") return accumulate(x, axes, {.op = Reduction::any, .y_dtype = Dtype::boolean}, false);
    if (name == "all") return accumulate(x, axes, {.op = Reduction::all, .y_dtype = Dtype::boolean}, true);
    if (name == "max") return extremum(x, axes, Reduction::max, dtype, op);
    if (name == "min") return extremum(x, axes, Reduction::min, dtype, op);
    if (name == "mean") {
      check_float(x, op);
      const Work work{
          .op = Reduction::sum, .y_dtype = dtype, .finish = Finish::divide, .divisor = static_cast<double>(axes.count)};
      return accumulate(x, axes, work, std::numeric_limits<double>::quiet_NaN());
    }
    if (name == "logsumexp") {
      check_float(x, op);
      return log_sum_exp(x, axes);
    }
    fail("reduce", "\"", name, "\" is no reduction");
  };
  return drop(result(), axes.reduced, keepdims);
}

Tensor var(const Tensor& x, const Dims& dims, std::int64_t ddof, bool keepdims) {
  const Axes axes = split_axes(x, dims, "var");
  check_float(x, "var");
  check(ddof >= 0, "var", "ddof is ", ddof, ": expected 0 or more");
  const auto free = static_cast<double>(std::max<std::int64_t>(axes.count - ddof, 0));
  const auto make = [&]() -> Tensor {
    if (x.numel() == 0) return constant(x, axes, std::numeric_limits<double>::quiet_NaN(), x.dtype());
    const Tensor mean = run(x, axes,
                            {.op = Reduction::sum,
                             .y_dtype = accumulator_of(x.dtype()),
                             .finish = Finish::divide,
                             .divisor = static_cast<double>(axes.count)});
    return run(x, axes,
               {.op = Reduction::sum_squares,
                .y_dtype = x.dtype(),
                .finish = Finish::divide,
                .divisor = free,
                .shift = &mean});
  };
  return drop(make(), axes.reduced, keepdims);
}

}  // namespace drupe::ops
