#include "ops/row_norm.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/norm_common.h"

namespace drupe::ops {
namespace {

struct Split {
  Dims leading, normalized;
};

Split split_shape(const char* op, const Tensor& x, int ndim) {
  check(ndim >= 1 && ndim <= x.ndim(), op, "ndim is ", ndim, ", x is ", x.shape(), ": expected 1 to ", x.ndim());
  const auto middle = x.shape().end() - ndim;
  return {Dims(std::span(x.shape().begin(), middle)), Dims(std::span(middle, x.shape().end()))};
}

const Tensor* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? &*tensor : nullptr;
}

// What forward and backward prepare alike.
struct Problem {
  Split shape;
  Tensor x, residual, weight, bias;
  RowNormArgs args;
};

Problem prepare(const char* op, const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                const std::optional<Tensor>& residual, int ndim, bool centered) {
  check_type(is_float(x.dtype()), op, "x is ", x.dtype(), ": expected float32, float64, float16 or bfloat16");
  common_device(op, {&x, pointer(weight), pointer(bias), pointer(residual)});
  Problem p{.shape = split_shape(op, x, ndim), .x = {}, .residual = {}, .weight = {}, .bias = {}, .args = {}};
  if (residual) {
    check_type(residual->dtype() == x.dtype(), op, "x is ", x.dtype(), ", residual is ", residual->dtype());
    check(residual->shape() == x.shape(), op, "x is ", x.shape(), ", residual is ", residual->shape(),
          ": expected one shape");
    p.residual = contiguous(*residual);
  }
  p.weight = norm_parameter(op, "weight", weight, p.shape.normalized, x.dtype());
  p.bias = norm_parameter(op, "bias", bias, p.shape.normalized, x.dtype());
  p.x = contiguous(x);
  p.args = {.rows = checked_numel(p.shape.leading, op),
            .size = checked_numel(p.shape.normalized, op),
            .x = p.x.raw(),
            .residual = p.residual.raw(),
            .weight = p.weight.raw(),
            .bias = p.bias.raw(),
            .dy = nullptr,
            .y = nullptr,
            .mean = nullptr,
            .rstd = nullptr,
            .dweight = nullptr,
            .dbias = nullptr,
            .eps = 0,
            .centered = centered,
            .dtype = x.dtype()};
  return p;
}

std::tuple<Tensor, Tensor, Tensor> forward(const char* op, Problem p, double eps) {
  check_eps(op, eps);
  const Dtype computed = accumulator_of(p.x.dtype());
  Tensor y = empty(p.x.shape(), p.x.dtype(), p.x.device());
  Tensor mean, rstd = empty(p.shape.leading, computed, p.x.device());
  if (p.args.centered) mean = empty(p.shape.leading, computed, p.x.device());
  p.args.eps = eps;
  p.args.y = y.raw();
  p.args.mean = mean.raw();
  p.args.rstd = rstd.raw();
  dispatch(
      p.x.device(), [&]<Isa I>() { cpu::row_norm<I>(p.args); }, [&](auto stream) { cuda::row_norm(p.args, stream); });
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> backward(const char* op, Problem p, const Tensor& dy, const Tensor* mean,
                                            const Tensor& rstd) {
  const Dtype computed = accumulator_of(p.x.dtype());
  common_device(op, {&p.x, &dy, mean, &rstd});
  check_type(dy.dtype() == p.x.dtype(), op, "x is ", p.x.dtype(), ", dy is ", dy.dtype());
  check(dy.shape() == p.x.shape(), op, "x is ", p.x.shape(), ", dy is ", dy.shape());
  for (const Tensor* saved : {mean, &rstd}) {
    check(!saved || (saved->shape() == p.shape.leading && saved->dtype() == computed && saved->is_contiguous()), op,
          "mean and rstd are not what the forward pass gave");
  }
  const Tensor gradient = contiguous(dy);
  Tensor dx = empty(p.x.shape(), p.x.dtype(), p.x.device());
  Tensor dweight = empty(p.shape.normalized, computed, p.x.device());
  Tensor dbias;
  if (p.args.centered) dbias = empty(p.shape.normalized, computed, p.x.device());
  p.args.dy = gradient.raw();
  p.args.y = dx.raw();
  p.args.mean = mean ? mean->raw() : nullptr;
  p.args.rstd = rstd.raw();
  p.args.dweight = dweight.raw();
  p.args.dbias = dbias.raw();
  dispatch(
      p.x.device(), [&]<Isa I>() { cpu::row_norm_backward<I>(p.args); },
      [&](auto stream) { cuda::row_norm_backward(p.args, stream); });
  return {dx, dweight, dbias};
}

Tensor as_parameter(const Tensor& gradient, const std::optional<Tensor>& parameter) {
  return parameter ? cast(gradient, parameter->dtype()) : Tensor();
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& x, const std::optional<Tensor>& weight,
                                              const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                                              double eps, int ndim) {
  return forward("layer_norm", prepare("layer_norm", x, weight, bias, residual, ndim, true), eps);
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& dy, const Tensor& x,
                                                       const std::optional<Tensor>& weight,
                                                       const std::optional<Tensor>& bias,
                                                       const std::optional<Tensor>& residual, const Tensor& mean,
                                                       const Tensor& rstd, int ndim) {
  const char* op = "layer_norm_backward";
  auto [dx, dweight, dbias] = backward(op, prepare(op, x, weight, bias, residual, ndim, true), dy, &mean, rstd);
  return {dx, as_parameter(dweight, weight), as_parameter(dbias, bias)};
}

std::pair<Tensor, Tensor> rms_norm(const Tensor& x, const std::optional<Tensor>& weight,
                                   const std::optional<Tensor>& residual, double eps, int ndim) {
  auto [y, mean, rstd] = forward("rms_norm", prepare("rms_norm", x, weight, {}, residual, ndim, false), eps);
  return {y, rstd};
}

std::pair<Tensor, Tensor> rms_norm_backward(const Tensor& dy, const Tensor& x, const std::optional<Tensor>& weight,
                                            const std::optional<Tensor>& residual, const Tensor& rstd, int ndim) {
  const char* op = "rms_norm_backward";
  auto [dx, dweight, dbias] = backward(op, prepare(op, x, weight, {}, residual, ndim, false), dy, nullptr, rstd);
  return {dx, as_parameter(dweight, weight)};
}

}  // namespace drupe::ops
