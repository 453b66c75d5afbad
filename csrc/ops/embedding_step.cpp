#include "ops/embedding_step.h"

#include <cstddef>

#include "core/check.h"

namespace drupe::ops {
namespace {

struct Rule {
  RowRule rule;
  std::vector<Dims> states;  // their shapes
};

Rule parse_rule(const char* op, const std::string& optimizer, const Dims& table) {
  if (optimizer == "sgd") return {RowRule::sgd, {}};
  if (optimizer == "adam" || optimizer == "adamw") return {RowRule::adam, {table, table}};
  if (optimizer == "rowwise_adagrad") return {RowRule::rowwise_adagrad, {{table[0]}}};
  fail(op, "optimizer is \"", optimizer, "\": expected rowwise_adagrad, sgd, adam or adamw");
}

struct Range {
  std::string name;
  const std::byte* begin;
  const std::byte* end;
};

// From the first element to the last, of strides that are not negative.
Range range_of(const std::string& name, const Tensor& tensor) {
  std::int64_t last = 0;
  for (int i = 0; i < tensor.ndim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
  const auto* data = static_cast<const std::byte*>(tensor.raw());
  const auto bytes = tensor.numel() == 0 ? 0 : (last + 1) * static_cast<std::int64_t>(size_of(tensor.dtype()));
  return {name, data, data + bytes};
}

void check_apart(const char* op, const std::vector<Range>& ranges) {
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    for (std::size_t k = 0; k < i; ++k) {
      check(ranges[i].end <= ranges[k].begin || ranges[k].end <= ranges[i].begin, op, ranges[k].name, " and ",
            ranges[i].name, " overlap");
    }
  }
}

void check_values(const char* op, const AdamArgs& values) {
  check_hyperparameter(op, "lr", values.lr);
  check_hyperparameter(op, "beta1", values.beta1, 0, 1);
  check_hyperparameter(op, "beta2", values.beta2, 0, 1);
  check_hyperparameter(op, "eps", values.eps);
  check_hyperparameter(op, "weight_decay", values.weight_decay);
  check_hyperparameter(op, "grad_scale", values.grad_scale);
  check(values.step >= 1, op, "step is ", values.step, ": expected at least 1");
}

}  // namespace

RowStepArgs describe_row_step(const char* op, const Tensor& weight, const Tensor& dy, const std::vector<Tensor>& states,
                              const RowStepOptions& options) {
  check_type(is_float(weight.dtype()), op, "weight is ", weight.dtype(), ": expected a float dtype");
  check(weight.ndim() == 2, op, "weight is ", weight.shape(), ": expected 2 dimensions");
  const bool none = weight.numel() == 0;
  check(none || weight.size(1) == 1 || weight.stride(1) == 1, op, "weight's columns are not adjacent");
  check(none || weight.size(0) == 1 || weight.stride(0) >= weight.size(1), op, "weight's rows overlap or go backwards");
  check_writable(weight, op, "weight");
  check_type(dy.dtype() == weight.dtype(), op, "weight is ", weight.dtype(), ", dy is ", dy.dtype(),
             ": expected one dtype");
  check(dy.ndim() > 0 && dy.size(-1) == weight.size(1), op, "dy is ", dy.shape(), ": expected ", weight.size(1),
        " columns, as of weight");
  common_device(op, {&weight, &dy});
  check_values(op, options.values);
  const Rule rule = parse_rule(op, options.optimizer, weight.shape());
  check(states.size() == rule.states.size(), op, options.optimizer, " has ", rule.states.size(), " states, got ",
        states.size());
  RowStepArgs args{.rule = rule.rule,
                   .weight = weight.raw(),
                   .row_stride = weight.stride(0),
                   .state = {},
                   .options = options.values,
                   .rounding = options.rounding};
  args.options.decoupled = options.optimizer == "adamw";
  args.rounding.stochastic = args.rounding.stochastic && accumulator_of(weight.dtype()) != weight.dtype();
  std::vector<Range> ranges{range_of("weight", weight)};
  for (std::size_t i = 0; i < states.size(); ++i) {
    const std::string name = "states[" + std::to_string(i) + "]";
    const Dtype dtype = accumulator_of(weight.dtype());
    check_type(states[i].dtype() == dtype, op, name, " is ", states[i].dtype(), ": expected ", dtype, " for a ",
               weight.dtype(), " table");
    check(states[i].shape() == rule.states[i], op, name, " is ", states[i].shape(), ": expected ", rule.states[i]);
    check(states[i].is_contiguous(), op, name, " is not contiguous");
    check_writable(states[i], op, name.c_str());
    common_device(op, {&weight, &states[i]});
    ranges.push_back(range_of(name, states[i]));
    args.state[i] = states[i].raw();
  }
  if (dy.is_contiguous()) ranges.push_back(range_of("dy", dy));  // others are copied first
  check_apart(op, ranges);
  return args;
}

}  // namespace drupe::ops
