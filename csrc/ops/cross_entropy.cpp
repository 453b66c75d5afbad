#include "ops/cross_entropy.h"

#include <cmath>

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/index_range.h"

namespace drupe::ops {
namespace {

struct Problem {
  Dims shape;  // of the labels
  Tensor logits, labels, weight;
  CrossEntropyArgs args;
};

// While a graph is captured, the graph does it; its kernels leave wrong labels alone.
void check_labels(const char* op, const Tensor& labels, std::int64_t C, std::int64_t ignore_index) {
  const auto refuse = [=](std::int64_t index, std::int64_t position) {
    fail<std::out_of_range>(op, "labels hold ", index, ", at position ", position, ": expected 0 to ", C - 1,
                            " or ignore_index ", ignore_index);
  };
  if (cuda::is_capturing(labels.device())) {
    defer_range_check(labels, C, ignore_index, refuse);
  } else if (const auto wrong = first_out_of_range(labels, C, ignore_index)) {
    refuse(wrong->index, wrong->position);
  }
}

Dims sums_shape(Dims rows) {
  rows.push_back(2);
  return rows;
}

// Kernels on a device sum the weights themselves.
double sum_of(const Tensor& weight) {
  if (weight.device().type != DeviceType::cpu) return 0;
  double sum = 0;
  for (std::int64_t c = 0; c < weight.numel(); ++c) {
    sum += weight.dtype() == Dtype::f64 ? weight.data<double>()[c] : static_cast<double>(weight.data<float>()[c]);
  }
  return sum;
}

Problem prepare(const char* op, const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& weight,
                const CrossEntropyOptions& options) {
  check_type(is_float(logits.dtype()), op, "logits are ", logits.dtype(),
             ": expected float32, float64, float16 or bfloat16");
  check_type(labels.dtype() == Dtype::i32 || labels.dtype() == Dtype::i64, op, "labels are ", labels.dtype(),
             ": expected int32 or int64");
  common_device(op, {&logits, &labels, weight ? &*weight : nullptr});
  check(logits.ndim() >= 1, op, "logits are ", logits.shape(), ": expected (..., C)");
  const Dims leading(std::span(logits.shape().begin(), logits.shape().end() - 1));
  check(labels.shape() == leading, op, "logits are ", logits.shape(), ", labels are ", labels.shape(), ": expected ",
        leading);
  check(options.label_smoothing >= 0 && options.label_smoothing <= 1, op, "label_smoothing is ",
        options.label_smoothing, ": expected 0 to 1");
  const std::int64_t C = logits.size(-1);
  Problem p{.shape = leading, .logits = contiguous(logits), .labels = contiguous(labels), .weight = {}, .args = {}};
  if (weight) {
    const Dtype computed = accumulator_of(logits.dtype());
    check_type(weight->dtype() == logits.dtype() || weight->dtype() == computed, op, "logits are ", logits.dtype(),
               ", weight is ", weight->dtype());
    check(weight->shape() == Dims{C}, op, "weight is ", weight->shape(), ": expected ", Dims{C});
    p.weight = cast(contiguous(*weight), computed);
  }
  p.args = {.rows = p.labels.numel(),
            .C = C,
            .logits = p.logits.raw(),
            .labels = p.labels.raw(),
            .weight = p.weight.raw(),
            .loss = nullptr,
            .dloss = nullptr,
            .sums = nullptr,
            .total = nullptr,
            .dlogits = nullptr,
            .ignore_index = options.ignore_index,
            .label_smoothing = options.label_smoothing,
            .weight_sum = weight ? sum_of(p.weight) : static_cast<double>(C),
            .reduction = parse_reduction(options.reduction, op),
            .dtype = logits.dtype(),
            .label_dtype = labels.dtype()};
  return p;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> cross_entropy(const Tensor& logits, const Tensor& labels,
                                                 const std::optional<Tensor>& weight,
                                                 const CrossEntropyOptions& options) {
  const char* op = "cross_entropy";
  Problem p = prepare(op, logits, labels, weight, options);
  check_labels(op, p.labels, p.args.C, options.ignore_index);
  const Dtype computed = accumulator_of(logits.dtype());
  Tensor loss = empty(p.args.reduction == Reduction::none ? p.shape : Dims{}, computed, logits.device());
  Tensor sums = empty(sums_shape(p.shape), computed, logits.device());
  Tensor total = empty({}, Dtype::f64, logits.device());
  p.args.loss = loss.raw();
  p.args.sums = sums.raw();
  p.args.total = total.data<double>();
  dispatch(
      logits.device(), [&]<Isa I>() { cpu::cross_entropy<I>(p.args); },
      [&](auto stream) { cuda::cross_entropy(p.args, stream); });
  return {loss, sums, total};
}

Tensor cross_entropy_backward(const Tensor& dloss, const Tensor& logits, const Tensor& labels,
                              const std::optional<Tensor>& weight, const Tensor& sums, const Tensor& total,
                              const CrossEntropyOptions& options) {
  const char* op = "cross_entropy_backward";
  Problem p = prepare(op, logits, labels, weight, options);
  const Device device = common_device(op, {&dloss, &logits, &sums, &total});
  // Forward has found them right; a device's kernel leaves those alone that have changed since.
  if (device.type == DeviceType::cpu) check_labels(op, p.labels, p.args.C, options.ignore_index);
  const Dtype computed = accumulator_of(logits.dtype());
  const Dims expected = p.args.reduction == Reduction::none ? p.shape : Dims{};
  check_type(dloss.dtype() == computed, op, "dloss is ", dloss.dtype(), ": expected ", computed);
  check(dloss.shape() == expected, op, "dloss is ", dloss.shape(), ": expected ", expected);
  check(sums.shape() == sums_shape(p.shape) && sums.dtype() == computed && sums.is_contiguous() && total.ndim() == 0 &&
            total.dtype() == Dtype::f64,
        op, "sums and total are not what the forward pass gave");
  const Tensor gradient = contiguous(dloss);
  Tensor dlogits = empty(logits.shape(), logits.dtype(), logits.device());
  p.args.dloss = gradient.raw();
  p.args.sums = sums.raw();
  p.args.total = total.data<double>();
  p.args.dlogits = dlogits.raw();
  dispatch(
      device, [&]<Isa I>() { cpu::cross_entropy_backward<I>(p.args); },
      [&](auto stream) { cuda::cross_entropy_backward(p.args, stream); });
  return dlogits;
}

}  // namespace drupe::ops
