#include "ops/attention.h"

#include <cmath>

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/lengths.h"

namespace drupe::ops {
namespace {

Tensor with_unit_rows(const Tensor& x) {
  return x.size(-1) <= 1 || x.stride(-1) == 1 ? x : clone(x);
}

AttentionOperand operand(const Tensor& x) {
  return {x.raw(), x.stride(0), x.stride(1), x.stride(2)};
}

// (B, H, S, D) over fresh (B, S, H, D) memory.
Tensor empty_bshd(std::int64_t B, std::int64_t H, std::int64_t S, std::int64_t D, Dtype dtype, Device device) {
  return empty({B, S, H, D}, dtype, device).permute({0, 2, 1, 3});
}

// The same, or (B, H, S, D) memory if that is how `like` has its heads and rows.
Tensor empty_as(const Tensor& like, Dtype dtype, Device device) {
  const Dims& shape = like.shape();
  return like.stride(1) >= like.stride(2) ? empty(shape, dtype, device)
                                          : empty_bshd(shape[0], shape[1], shape[2], shape[3], dtype, device);
}

// The validated arguments, and the tensors that their pointers look into.
struct Problem {
  AttentionArgs args;
  Tensor q, k, v, bias, lengths, query_lengths;
  Device device;
};

void check_operands(const Tensor& q, const Tensor& k, const Tensor& v, const char* op) {
  check_type(is_float(q.dtype()), op, "q is ", q.dtype(), ": expected float32, float64, float16 or bfloat16");
  check_type(k.dtype() == q.dtype() && v.dtype() == q.dtype(), op, "q is ", q.dtype(), ", k is ", k.dtype(), ", v is ",
             v.dtype(), ": expected one dtype");
  check(q.ndim() == 4, op, "q is ", q.shape(), ": expected 4 dimensions (B, Hq, Sq, D)");
  check(k.ndim() == 4, op, "k is ", k.shape(), ": expected 4 dimensions (B, Hkv, Skv, D)");
  check(v.ndim() == 4, op, "v is ", v.shape(), ": expected 4 dimensions (B, Hkv, Skv, Dv)");
  check(k.size(0) == q.size(0) && v.size(0) == q.size(0), op, "q is ", q.shape(), ", k is ", k.shape(), ", v is ",
        v.shape(), ": batch sizes differ");
  check(k.size(3) == q.size(3), op, "q is ", q.shape(), ", k is ", k.shape(), ": head dimensions ", q.size(3), " and ",
        k.size(3), " differ");
  check(k.size(1) == v.size(1) && k.size(2) == v.size(2), op, "k is ", k.shape(), ", v is ", v.shape(),
        ": expected the same heads and keys");
  check(q.size(3) >= 1, op, "q is ", q.shape(), ": the head dimension must be at least 1");
  check(k.size(1) > 0 ? q.size(1) % k.size(1) == 0 : q.size(1) == 0, op, "q has ", q.size(1), " heads, k has ",
        k.size(1), ": expected a multiple");
}

void add_bias(Problem& problem, const Tensor& bias, const Dims& shape, const char* op) {
  check_type(bias.dtype() == problem.args.dtype, op, "q is ", problem.args.dtype, ", bias is ", bias.dtype());
  check(bias.ndim() <= 4, op, "bias is ", bias.shape(), ": does not broadcast to ", shape);
  for (int i = 1; i <= bias.ndim(); ++i) {
    check(bias.size(-i) == 1 || bias.size(-i) == shape[4 - i], op, "bias is ", bias.shape(), ": does not broadcast to ",
          shape);
  }
  problem.bias = bias.broadcast_to(shape);
  AttentionArgs& args = problem.args;
  args.bias = problem.bias.raw();
  args.bias_batch = problem.bias.stride(0);
  args.bias_head = problem.bias.stride(1);
  args.bias_row = problem.bias.stride(2);
  args.bias_col = problem.bias.stride(3);
}

Problem plan(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options, const char* op) {
  check_operands(q, k, v, op);
  const auto pointer = [](const std::optional<Tensor>& t) { return t ? &*t : nullptr; };
  Problem problem{.args = {.B = q.size(0),
                           .Hq = q.size(1),
                           .Hkv = k.size(1),
                           .Sq = q.size(2),
                           .Skv = k.size(2),
                           .D = q.size(3),
                           .Dv = v.size(3),
                           .q = {},
                           .k = {},
                           .v = {},
                           .y = {},
                           .left = 0,
                           .right = 0,
                           .scale = options.scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3)))),
                           .lse = nullptr,
                           .dtype = q.dtype()},
                  .q = with_unit_rows(q),
                  .k = with_unit_rows(k),
                  .v = with_unit_rows(v),
                  .bias = {},
                  .lengths = {},
                  .query_lengths = {},
                  .device = common_device(op, {&q, &k, &v, pointer(options.bias), pointer(options.lengths),
                                               pointer(options.query_lengths)})};
  AttentionArgs& args = problem.args;
  check(std::isfinite(args.scale), op, "scale is ", args.scale, ": expected a finite number");
  args.q = operand(problem.q);
  args.k = operand(problem.k);
  args.v = operand(problem.v);
  const std::int64_t unbounded = args.Sq + args.Skv;
  for (const auto& [what, given, bound] :
       {std::tuple{"left", options.left, &args.left}, std::tuple{"right", options.right, &args.right}}) {
    check(given.value_or(0) >= 0, op, "window's ", what, " bound is ", given.value_or(0),
          ": expected a non-negative number of keys");
    *bound = std::min(given.value_or(unbounded), unbounded);
  }
  const Dims logits{args.B, args.Hq, args.Sq, args.Skv};
  if (options.bias) add_bias(problem, *options.bias, logits, op);
  if (options.lengths) {
    problem.lengths = checked_lengths(*options.lengths, args.B, args.Skv, "lengths", op);
    args.lengths = problem.lengths.data<std::int64_t>();
  }
  if (options.query_lengths) {
    problem.query_lengths = checked_lengths(*options.query_lengths, args.B, args.Sq, "query_lengths", op);
    args.query_lengths = problem.query_lengths.data<std::int64_t>();
  }
  return problem;
}

}  // namespace

std::pair<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const AttentionOptions& options) {
  Problem problem = plan(q, k, v, options, "attention");
  AttentionArgs& args = problem.args;
  Tensor y = empty_bshd(args.B, args.Hq, args.Sq, args.Dv, args.dtype, problem.device);
  Tensor lse = empty({args.B, args.Hq, args.Sq}, accumulator_of(args.dtype), problem.device);
  args.y = operand(y);
  args.lse = lse.raw();
  if (lse.numel() > 0) {
    dispatch(
        problem.device, [&]<Isa I>() { cpu::attention<I>(args); }, [&](auto stream) { cuda::attention(args, stream); });
  }
  return {y, lse};
}

AttentionGradients attention_backward(const Tensor& dy, const Tensor& y, const Tensor& lse, const Tensor& q,
                                      const Tensor& k, const Tensor& v, const AttentionOptions& options,
                                      const AttentionWanted& wanted) {
  const char* op = "attention_backward";
  Problem problem = plan(q, k, v, options, op);
  AttentionBackwardArgs args{.forward = problem.args, .dy = {}, .dq = {}, .dk = {}, .dv = {}};
  AttentionArgs& f = args.forward;
  const Dims shape{f.B, f.Hq, f.Sq, f.Dv};
  common_device(op, {&q, &dy, &y, &lse});
  check_type(dy.dtype() == f.dtype && y.dtype() == f.dtype, op, "q is ", f.dtype, ", dy is ", dy.dtype(), ", y is ",
             y.dtype());
  check(dy.shape() == shape && y.shape() == shape, op, "dy is ", dy.shape(), ", y is ", y.shape(), ": expected ",
        shape);
  check_type(lse.dtype() == accumulator_of(f.dtype), op, "lse is ", lse.dtype());
  check((lse.shape() == Dims{f.B, f.Hq, f.Sq}), op, "lse is ", lse.shape(), ": expected ", Dims{f.B, f.Hq, f.Sq});
  const Tensor gradient = with_unit_rows(dy), output = with_unit_rows(y), sums = contiguous(lse);
  args.dy = operand(gradient);
  f.y = operand(output);
  f.lse = sums.raw();

  AttentionGradients out;
  if (wanted.dq) out.dq = empty_as(q, f.dtype, problem.device);
  if (wanted.dk) out.dk = empty_as(k, f.dtype, problem.device);
  if (wanted.dv) out.dv = empty_as(v, f.dtype, problem.device);
  if (wanted.dq) args.dq = operand(out.dq);
  if (wanted.dk) args.dk = operand(out.dk);
  if (wanted.dv) args.dv = operand(out.dv);
  if (wanted.dbias && options.bias) {
    const Tensor& bias = *options.bias;
    out.dbias = zeros(bias.shape(), f.dtype, problem.device);
    args.dbias = out.dbias.raw();
    for (int i = 0; i < 4; ++i) args.bias_shape[i] = i + bias.ndim() < 4 ? 1 : bias.size(i - 4);
  }
  dispatch(
      problem.device, [&]<Isa I>() { cpu::attention_backward<I>(args); },
      [&](auto stream) { cuda::attention_backward(args, stream); });
  return out;
}

}  // namespace drupe::ops
