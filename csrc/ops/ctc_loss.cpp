#include "ops/ctc_loss.h"

#include <algorithm>

#include "core/check.h"
#include "ops/backend.h"
#include "ops/binary.h"
#include "ops/copy.h"
#include "ops/fill.h"
#include "ops/index_range.h"
#include "ops/lengths.h"

namespace drupe::ops {
namespace {

constexpr const char* kOp = "ctc_loss";

// What is made of targets and lengths, where the logits lie. Without offsets the labels are padded.
struct Targets {
  Tensor labels, offsets, input_lengths, target_lengths;
  std::int64_t longest = 0;
};

void refuse_label(std::int64_t label, std::int64_t C, std::int64_t blank, const std::string& where) {
  if (label == kBlankLabel || label == blank) {
    fail<std::out_of_range>(kOp, "targets", where, " is ", blank, ", the blank");
  }
  fail<std::out_of_range>(kOp, "targets", where, " is ", label, ": expected 0 to ", C - 1, " but ", blank,
                          ", the blank");
}

std::string place(std::int64_t b, std::int64_t l) {
  return "[" + std::to_string(b) + ", " + std::to_string(l) + "]";
}

// Finds the offsets of concatenated targets and the longest one, and looks at all labels that count.
void check_on_host(Targets& targets, std::int64_t B, std::int64_t C, std::int64_t blank) {
  const Tensor labels = to_device(targets.labels, Device{}), lengths = to_device(targets.target_lengths, Device{});
  const bool padded = labels.ndim() == 2;
  Tensor offsets = empty({B}, Dtype::i64);
  std::int64_t total = 0;
  for (std::int64_t b = 0; b < B; ++b) {
    const std::int64_t length = lengths.data<std::int64_t>()[b];
    offsets.data<std::int64_t>()[b] = padded ? b * labels.size(1) : total;
    total += length;
    targets.longest = std::max(targets.longest, length);
    check(padded || total <= labels.numel(), kOp, "targets are ", labels.shape(), ": target_lengths add up to more");
  }
  check(padded || total == labels.numel(), kOp, "targets are ", labels.shape(), ": target_lengths add up to ", total);
  for (std::int64_t b = 0; b < B; ++b) {
    const std::int64_t begin = offsets.data<std::int64_t>()[b];
    for (std::int64_t l = 0; l < lengths.data<std::int64_t>()[b]; ++l) {
      const std::int64_t label = labels.data<std::int64_t>()[begin + l];
      if (label >= 0 && label < C && label != blank) continue;
      refuse_label(label, C, blank, padded ? place(b, l) : "[" + std::to_string(begin + l) + "]");
    }
  }
  if (!padded) targets.offsets = to_device(offsets, targets.labels.device());
}

// The same while a graph is captured: it looks itself.
void check_in_graph(Targets& targets, std::int64_t B, std::int64_t C, std::int64_t blank) {
  check(targets.labels.ndim() == 2, kOp, "targets are ", targets.labels.shape(), ": a graph needs padded ones, (B, L)");
  const std::int64_t L = targets.labels.size(1);
  targets.longest = L;
  if (B == 0 || L == 0) return;
  Tensor counted = empty({B, L}, Dtype::i64, targets.labels.device());
  const CtcLabelsArgs args{.B = B,
                           .L = L,
                           .targets = targets.labels.data<std::int64_t>(),
                           .lengths = targets.target_lengths.data<std::int64_t>(),
                           .labels = counted.data<std::int64_t>(),
                           .blank = blank};
  dispatch(counted.device(), []<Isa>() {}, [&](auto stream) { cuda::ctc_labels(args, stream); });
  targets.labels = defer_range_check(counted, C, {}, [=](std::int64_t label, std::int64_t position) {
    refuse_label(label, C, blank, place(position / L, position % L));
  });
}

Tensor lengths_of(const std::optional<Tensor>& given, std::int64_t B, std::int64_t limit, const char* what,
                  Device device) {
  if (given) return checked_lengths(*given, B, limit, what, kOp);
  return full({B}, limit, Dtype::i64, device);
}

Targets prepare(const Tensor& logits, const Tensor& targets, const std::optional<Tensor>& input_lengths,
                const std::optional<Tensor>& target_lengths, std::int64_t blank) {
  const std::int64_t T = logits.size(0), B = logits.size(1), C = logits.size(2);
  check_type(targets.dtype() == Dtype::i32 || targets.dtype() == Dtype::i64, kOp, "targets are ", targets.dtype(),
             ": expected int32 or int64");
  check((targets.ndim() == 2 && targets.size(0) == B) || targets.ndim() == 1, kOp, "logits are ", logits.shape(),
        ", targets are ", targets.shape(), ": expected (", B, ", L), or one dimension");
  check(targets.ndim() == 2 || target_lengths, kOp, "targets are ", targets.shape(),
        ", one after the other: target_lengths are missing");
  const std::int64_t limit = targets.ndim() == 2 ? targets.size(1) : targets.numel();
  Targets result;
  result.labels = contiguous(cast(targets, Dtype::i64));
  result.input_lengths = lengths_of(input_lengths, B, T, "input_lengths", logits.device());
  result.target_lengths = lengths_of(target_lengths, B, limit, "target_lengths", logits.device());
  if (cuda::is_capturing(logits.device())) {
    check_in_graph(result, B, C, blank);
  } else {
    check_on_host(result, B, C, blank);
  }
  return result;
}

}  // namespace

std::pair<Tensor, std::optional<Tensor>> ctc_loss(const Tensor& logits, const Tensor& targets,
                                                  const std::optional<Tensor>& input_lengths,
                                                  const std::optional<Tensor>& target_lengths,
                                                  const CtcLossOptions& options) {
  check_type(is_float(logits.dtype()), kOp, "logits are ", logits.dtype(),
             ": expected float32, float64, float16 or bfloat16");
  check(logits.ndim() == 3, kOp, "logits are ", logits.shape(), ": expected (T, B, C)");
  check(options.blank >= 0 && options.blank < logits.size(2), kOp, "blank is ", options.blank, ": expected 0 to ",
        logits.size(2) - 1, ", a class");
  const Device device = common_device(
      kOp, {&logits, &targets, input_lengths ? &*input_lengths : nullptr, target_lengths ? &*target_lengths : nullptr});
  const Reduction reduction = parse_reduction(options.reduction, kOp);
  const Tensor z = contiguous(logits);
  const Targets prepared = prepare(logits, targets, input_lengths, target_lengths, options.blank);
  const Dtype computed = accumulator_of(logits.dtype());
  const std::int64_t B = logits.size(1);
  Tensor loss = empty(reduction == Reduction::none ? Dims{B} : Dims{}, computed, device);
  std::optional<Tensor> gradient;
  if (options.want_gradient) gradient = empty(logits.shape(), computed, device);
  const CtcLossArgs args{.T = logits.size(0),
                         .B = B,
                         .C = logits.size(2),
                         .L = prepared.longest,
                         .logits = z.raw(),
                         .labels = prepared.labels.data<std::int64_t>(),
                         .offsets = prepared.offsets.data<std::int64_t>(),
                         .label_stride = prepared.labels.size(-1),
                         .input_lengths = prepared.input_lengths.data<std::int64_t>(),
                         .target_lengths = prepared.target_lengths.data<std::int64_t>(),
                         .loss = loss.raw(),
                         .gradient = gradient ? gradient->raw() : nullptr,
                         .blank = options.blank,
                         .reduction = reduction,
                         .zero_infinity = options.zero_infinity,
                         .dtype = logits.dtype()};
  dispatch(device, [&]<Isa I>() { cpu::ctc_loss<I>(args); }, [&](auto stream) { cuda::ctc_loss(args, stream); });
  return {loss, gradient};
}

Tensor ctc_loss_backward(const Tensor& dloss, const Tensor& gradient, const Tensor& like) {
  const char* op = "ctc_loss_backward";
  common_device(op, {&dloss, &gradient, &like});
  check(gradient.ndim() == 3 && gradient.shape() == like.shape() && gradient.dtype() == accumulator_of(like.dtype()),
        op, "gradient is not what the forward pass gave");
  check_type(dloss.dtype() == gradient.dtype(), op, "dloss is ", dloss.dtype(), ": expected ", gradient.dtype());
  const std::int64_t B = gradient.size(1);
  check(dloss.ndim() == 0 || dloss.shape() == Dims{B}, op, "dloss is ", dloss.shape(), ": expected () or (", B, ",)");
  const Tensor factor = dloss.ndim() == 0 ? dloss : reshape(dloss, {B, 1});
  return cast(binary("mul", gradient, factor), like.dtype());
}

}  // namespace drupe::ops
