#include "ops/bce_with_logits.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"

namespace drupe::ops {
namespace {

struct Problem {
  Tensor logits, targets, weight, pos_weight;
  BceArgs args;
};

Tensor spread(const char* op, const char* name, const std::optional<Tensor>& factor, const Tensor& logits) {
  if (!factor) return {};
  check_type(factor->dtype() == logits.dtype(), op, "logits are ", logits.dtype(), ", ", name, " is ", factor->dtype());
  check(broadcast_shapes(factor->shape(), logits.shape(), op) == logits.shape(), op, name, " is ", factor->shape(),
        ": does not broadcast to ", logits.shape());
  return contiguous(factor->broadcast_to(logits.shape()));
}

Problem prepare(const char* op, const Tensor& logits, const Tensor& targets, const std::optional<Tensor>& weight,
                const std::optional<Tensor>& pos_weight, const std::string& reduction) {
  check_type(is_float(logits.dtype()), op, "logits are ", logits.dtype(),
             ": expected float32, float64, float16 or bfloat16");
  check_type(targets.dtype() == logits.dtype() || !is_float(targets.dtype()), op, "logits are ", logits.dtype(),
             ", targets are ", targets.dtype(), ": expected one dtype, or integers or bool");
  check(targets.shape() == logits.shape(), op, "logits are ", logits.shape(), ", targets are ", targets.shape(),
        ": expected one shape");
  common_device(op, {&logits, &targets, weight ? &*weight : nullptr, pos_weight ? &*pos_weight : nullptr});
  Problem p{.logits = contiguous(logits),
            .targets = cast(contiguous(targets), logits.dtype()),
            .weight = spread(op, "weight", weight, logits),
            .pos_weight = spread(op, "pos_weight", pos_weight, logits),
            .args = {}};
  p.args = {.size = logits.numel(),
            .logits = p.logits.raw(),
            .targets = p.targets.raw(),
            .weight = p.weight.raw(),
            .pos_weight = p.pos_weight.raw(),
            .loss = nullptr,
            .dloss = nullptr,
            .dlogits = nullptr,
            .dtargets = nullptr,
            .reduction = parse_reduction(reduction, op),
            .dtype = logits.dtype()};
  return p;
}

}  // namespace

Tensor bce_with_logits(const Tensor& logits, const Tensor& targets, const std::optional<Tensor>& weight,
                       const std::optional<Tensor>& pos_weight, const std::string& reduction) {
  Problem p = prepare("bce_with_logits", logits, targets, weight, pos_weight, reduction);
  Tensor loss = empty(p.args.reduction == Reduction::none ? logits.shape() : Dims{}, accumulator_of(logits.dtype()),
                      logits.device());
  p.args.loss = loss.raw();
  dispatch(
      logits.device(), [&]<Isa I>() { cpu::bce_with_logits<I>(p.args); },
      [&](auto stream) { cuda::bce_with_logits(p.args, stream); });
  return loss;
}

std::pair<Tensor, Tensor> bce_with_logits_backward(const Tensor& dloss, const Tensor& logits, const Tensor& targets,
                                                   const std::optional<Tensor>& weight,
                                                   const std::optional<Tensor>& pos_weight,
                                                   const std::string& reduction, bool want_dtargets) {
  const char* op = "bce_with_logits_backward";
  const Device device = common_device(op, {&dloss, &logits});
  Problem p = prepare(op, logits, targets, weight, pos_weight, reduction);
  const Dtype computed = accumulator_of(logits.dtype());
  const Dims expected = p.args.reduction == Reduction::none ? logits.shape() : Dims{};
  check_type(dloss.dtype() == computed, op, "dloss is ", dloss.dtype(), ": expected ", computed);
  check(dloss.shape() == expected, op, "dloss is ", dloss.shape(), ": expected ", expected);
  const Tensor gradient = contiguous(dloss);
  Tensor dlogits = empty(logits.shape(), logits.dtype(), logits.device());
  Tensor dtargets;
  if (want_dtargets) dtargets = empty(logits.shape(), logits.dtype(), logits.device());
  p.args.dloss = gradient.raw();
  p.args.dlogits = dlogits.raw();
  p.args.dtargets = dtargets.raw();
  dispatch(
      device, [&]<Isa I>() { cpu::bce_with_logits_backward<I>(p.args); },
      [&](auto stream) { cuda::bce_with_logits_backward(p.args, stream); });
  return {dlogits, dtargets};
}

}  // namespace drupe::ops
