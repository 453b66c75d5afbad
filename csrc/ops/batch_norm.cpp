#include "ops/batch_norm.h"

#include <cmath>

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/norm_common.h"

namespace drupe::ops {
namespace {

void check_running(const char* op, const char* name, const Tensor& statistic, const Tensor& x, std::int64_t C) {
  const Dtype computed = accumulator_of(x.dtype());
  check_type(statistic.dtype() == computed, op, "x is ", x.dtype(), ", ", name, " is ", statistic.dtype(),
             ": expected ", computed);
  check(statistic.shape() == Dims{C}, op, name, " is ", statistic.shape(), ": expected ", Dims{C});
}

struct Problem {
  Tensor x, weight, bias;
  BatchNormArgs args;
};

Problem prepare(const char* op, const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                const std::string& layout) {
  check_channels(op, x, layout);
  common_device(op, {&x, weight ? &*weight : nullptr, bias ? &*bias : nullptr});
  Problem p{.x = to_channels_last(x, layout), .weight = {}, .bias = {}, .args = {}};
  const std::int64_t C = p.x.size(-1);
  p.weight = norm_parameter(op, "weight", weight, Dims{C}, x.dtype());
  p.bias = norm_parameter(op, "bias", bias, Dims{C}, x.dtype());
  p.args.rows = C == 0 ? 0 : p.x.numel() / C;
  p.args.C = C;
  p.args.x = p.x.raw();
  p.args.weight = p.weight.raw();
  p.args.bias = p.bias.raw();
  p.args.dtype = x.dtype();
  return p;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> batch_norm(const Tensor& x, const std::optional<Tensor>& weight,
                                              const std::optional<Tensor>& bias,
                                              const std::optional<Tensor>& running_mean,
                                              const std::optional<Tensor>& running_var,
                                              const BatchNormOptions& options) {
  const char* op = "batch_norm";
  check_eps(op, options.eps);
  check(options.momentum >= 0 && options.momentum <= 1, op, "momentum is ", options.momentum, ": expected 0 to 1");
  Problem p = prepare(op, x, weight, bias, options.layout);
  check(running_mean.has_value() == running_var.has_value(), op,
        "one of running_mean and running_var is missing: expected both or none");
  check(options.training || running_mean, op, "running_mean and running_var are missing: expected outside training");
  if (running_mean) {
    common_device(op, {&x, &*running_mean, &*running_var});
    check_running(op, "running_mean", *running_mean, x, p.args.C);
    check_running(op, "running_var", *running_var, x, p.args.C);
    if (options.training) {
      check_writable(*running_mean, op, "running_mean");
      check_writable(*running_var, op, "running_var");
    }
    p.args.running_mean = running_mean->raw();
    p.args.running_var = running_var->raw();
    p.args.running_mean_stride = running_mean->stride(0);
    p.args.running_var_stride = running_var->stride(0);
  }
  check(!options.training || p.args.rows != 1, op, "x is ", x.shape(),
        ": training needs more than one value per channel");
  const Dtype computed = accumulator_of(x.dtype());
  Tensor y = empty(p.x.shape(), x.dtype(), x.device());
  Tensor mean = empty(Dims{p.args.C}, computed, x.device());
  Tensor rstd = empty(Dims{p.args.C}, computed, x.device());
  p.args.y = y.raw();
  p.args.mean = mean.raw();
  p.args.rstd = rstd.raw();
  p.args.momentum = options.momentum;
  p.args.eps = options.eps;
  p.args.training = options.training;
  dispatch(
      x.device(), [&]<Isa I>() { cpu::batch_norm<I>(p.args); }, [&](auto stream) { cuda::batch_norm(p.args, stream); });
  return {from_channels_last(y, options.layout), mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_backward(const Tensor& dy, const Tensor& x,
                                                       const std::optional<Tensor>& weight,
                                                       const std::optional<Tensor>& bias, const Tensor& mean,
                                                       const Tensor& rstd, bool training, const std::string& layout) {
  const char* op = "batch_norm_backward";
  Problem p = prepare(op, x, weight, bias, layout);
  const Dtype computed = accumulator_of(x.dtype());
  check_type(dy.dtype() == x.dtype(), op, "x is ", x.dtype(), ", dy is ", dy.dtype());
  check(dy.shape() == x.shape(), op, "x is ", x.shape(), ", dy is ", dy.shape());
  common_device(op, {&x, &dy, &mean, &rstd});
  for (const Tensor* saved : {&mean, &rstd}) {
    check(saved->shape() == Dims{p.args.C} && saved->dtype() == computed && saved->is_contiguous(), op,
          "mean and rstd are not what the forward pass gave");
  }
  const Tensor gradient = to_channels_last(dy, layout);
  Tensor dx = empty(p.x.shape(), x.dtype(), x.device());
  Tensor dweight = empty(Dims{p.args.C}, computed, x.device());
  Tensor dbias = empty(Dims{p.args.C}, computed, x.device());
  p.args.dy = gradient.raw();
  p.args.y = dx.raw();
  p.args.mean = mean.raw();
  p.args.rstd = rstd.raw();
  p.args.dweight = dweight.raw();
  p.args.dbias = dbias.raw();
  p.args.training = training;
  dispatch(
      x.device(), [&]<Isa I>() { cpu::batch_norm_backward<I>(p.args); },
      [&](auto stream) { cuda::batch_norm_backward(p.args, stream); });
  return {from_channels_last(dx, layout), weight ? cast(dweight, weight->dtype()) : Tensor(),
          bias ? cast(dbias, bias->dtype()) : Tensor()};
}

}  // namespace drupe::ops
