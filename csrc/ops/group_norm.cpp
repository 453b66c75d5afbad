#include "ops/group_norm.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/norm_common.h"

namespace drupe::ops {
namespace {

// Whether the kernel gets the channels first: on the CPU where x has them first in memory, or lies densely in neither
// order and has layout "NCHW".
bool takes_channels_first(const Tensor& x, const std::string& layout) {
  if (x.device().type != DeviceType::cpu) return false;
  const Tensor first = layout == "NCHW" ? x : move_channels_first(x);
  const bool one_row = first.numel() == first.size(0) * first.size(1);  // dense in both orders, if in one
  if (first.is_contiguous()) return !one_row;
  return layout == "NCHW" && !one_row && !move_channels_last(first).is_contiguous();
}

// x as its kernel wants it, contiguous, and what the kernel gives, as the caller wants it.
Tensor to_kernel(const Tensor& x, const std::string& layout, bool channels_first) {
  if (!channels_first) return to_channels_last(x, layout);
  return contiguous(layout == "NCHW" ? x : move_channels_first(x));
}

Tensor from_kernel(const Tensor& y, const std::string& layout, bool channels_first) {
  if (!channels_first) return from_channels_last(y, layout);
  return layout == "NCHW" ? y : move_channels_last(y);
}

struct Problem {
  Tensor x, weight, bias;
  GroupNormArgs args;
};

Problem prepare(const char* op, const Tensor& x, std::int64_t groups, const std::optional<Tensor>& weight,
                const std::optional<Tensor>& bias, const std::string& layout) {
  check_channels(op, x, layout);
  common_device(op, {&x, weight ? &*weight : nullptr, bias ? &*bias : nullptr});
  const std::int64_t C = layout == "NHWC" ? x.size(-1) : x.size(1);
  check(groups >= 1 && C % groups == 0, op, "groups is ", groups, ", x is ", x.shape(), ": expected a divisor of its ",
        C, " channels");
  Problem p{.x = {}, .weight = {}, .bias = {}, .args = {}};
  p.args.channels_first = takes_channels_first(x, layout);
  p.x = to_kernel(x, layout, p.args.channels_first);
  p.weight = norm_parameter(op, "weight", weight, Dims{C}, x.dtype());
  p.bias = norm_parameter(op, "bias", bias, Dims{C}, x.dtype());
  p.args.N = p.x.size(0);
  p.args.rows = 1;
  for (int i = 1; i < x.ndim() - 1; ++i) p.args.rows *= p.x.size(p.args.channels_first ? i + 1 : i);
  p.args.C = C;
  p.args.groups = groups;
  p.args.x = p.x.raw();
  p.args.weight = p.weight.raw();
  p.args.bias = p.bias.raw();
  p.args.dtype = x.dtype();
  return p;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> group_norm(const Tensor& x, std::int64_t groups, const std::optional<Tensor>& weight,
                                              const std::optional<Tensor>& bias, double eps,
                                              const std::string& layout) {
  const char* op = "group_norm";
  check_eps(op, eps);
  Problem p = prepare(op, x, groups, weight, bias, layout);
  const Dtype computed = accumulator_of(x.dtype());
  Tensor y = empty(p.x.shape(), x.dtype(), x.device());
  Tensor mean = empty(Dims{p.args.N, groups}, computed, x.device());
  Tensor rstd = empty(Dims{p.args.N, groups}, computed, x.device());
  p.args.y = y.raw();
  p.args.mean = mean.raw();
  p.args.rstd = rstd.raw();
  p.args.eps = eps;
  dispatch(
      x.device(), [&]<Isa I>() { cpu::group_norm<I>(p.args); }, [&](auto stream) { cuda::group_norm(p.args, stream); });
  return {from_kernel(y, layout, p.args.channels_first), mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_backward(const Tensor& dy, const Tensor& x,
                                                       const std::optional<Tensor>& weight,
                                                       const std::optional<Tensor>& bias, const Tensor& mean,
                                                       const Tensor& rstd, const std::string& layout) {
  const char* op = "group_norm_backward";
  check(mean.ndim() == 2 && mean.shape() == rstd.shape(), op, "mean and rstd are not what the forward pass gave");
  Problem p = prepare(op, x, mean.size(1), weight, bias, layout);
  const Dtype computed = accumulator_of(x.dtype());
  check_type(dy.dtype() == x.dtype(), op, "x is ", x.dtype(), ", dy is ", dy.dtype());
  check(dy.shape() == x.shape(), op, "x is ", x.shape(), ", dy is ", dy.shape());
  common_device(op, {&x, &dy, &mean, &rstd});
  for (const Tensor* saved : {&mean, &rstd}) {
    check(saved->size(0) == p.args.N && saved->dtype() == computed && saved->is_contiguous(), op,
          "mean and rstd are not what the forward pass gave");
  }
  const Tensor gradient = to_kernel(dy, layout, p.args.channels_first);
  Tensor dx = empty(p.x.shape(), x.dtype(), x.device());
  Tensor dweight = empty(Dims{p.args.C}, computed, x.device());
  Tensor dbias = empty(Dims{p.args.C}, computed, x.device());
  p.args.dy = gradient.raw();
  p.args.y = dx.raw();
  p.args.mean = mean.raw();
  p.args.rstd = rstd.raw();
  p.args.dweight = dweight.raw();
  p.args.dbias = dbias.raw();
  dispatch(
      x.device(), [&]<Isa I>() { cpu::group_norm_backward<I>(p.args); },
      [&](auto stream) { cuda::group_norm_backward(p.args, stream); });
  return {from_kernel(dx, layout, p.args.channels_first), weight ? cast(dweight, weight->dtype()) : Tensor(),
          bias ? cast(dbias, bias->dtype()) : Tensor()};
}

}  // namespace drupe::ops
