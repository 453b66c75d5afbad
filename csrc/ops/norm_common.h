// What the normalisations share: their parameters, and images as rows of channels.
#pragma once

#include <cmath>
#include <optional>
#include <string>

#include "core/check.h"
#include "core/tensor.h"
#include "ops/copy.h"

namespace drupe::ops {

// A weight or bias of `shape`, contiguous in the dtype that x is computed in; undefined where there is none. Its dtype
// is x's or that one.
inline Tensor norm_parameter(const char* op, const char* name, const std::optional<Tensor>& parameter,
                             const Dims& shape, Dtype x_dtype) {
  if (!parameter) return {};
  const Dtype computed = accumulator_of(x_dtype);
  check_type(parameter->dtype() == x_dtype || parameter->dtype() == computed, op, "x is ", x_dtype, ", ", name, " is ",
             parameter->dtype(), ": expected ", x_dtype, computed == x_dtype ? "" : " or float32");
  check(parameter->shape() == shape, op, name, " is ", parameter->shape(), ": expected ", shape);
  return cast(contiguous(*parameter), computed);
}

// Throws std::invalid_argument unless eps is finite and not negative.
inline void check_eps(const char* op, double eps) {
  check(std::isfinite(eps) && eps >= 0, op, "eps is ", eps, ": expected a finite number that is not negative");
}

// Throws unless x has a float dtype, 2 dimensions or more, and layout is "NCHW" or "NHWC".
inline void check_channels(const char* op, const Tensor& x, const std::string& layout) {
  check_type(is_float(x.dtype()), op, "x is ", x.dtype(), ": expected float32, float64, float16 or bfloat16");
  check(layout == "NCHW" || layout == "NHWC", op, "layout is \"", layout, "\": expected NCHW or NHWC");
  check(x.ndim() >= 2, op, "x is ", x.shape(), ": expected at least 2 dimensions, (N, C, …)");
}

// The view (N, …, C) of (N, C, …).
inline Tensor move_channels_last(const Tensor& x) {
  Dims order{0};
  for (int i = 2; i < x.ndim(); ++i) order.push_back(i);
  order.push_back(1);
  return x.permute(order);
}

// The inverse view.
inline Tensor move_channels_first(const Tensor& x) {
  Dims order{0, x.ndim() - 1};
  for (int i = 1; i < x.ndim() - 1; ++i) order.push_back(i);
  return x.permute(order);
}

// (N, C, …) in "NCHW" becomes (N, …, C), contiguous: a view where the channels lie last in memory, a copy otherwise.
inline Tensor to_channels_last(const Tensor& x, const std::string& layout) {
  return contiguous(layout == "NHWC" ? x : move_channels_last(x));
}

// The inverse view.
inline Tensor from_channels_last(const Tensor& y, const std::string& layout) {
  return layout == "NHWC" ? y : move_channels_first(y);
}

}  // namespace drupe::ops
