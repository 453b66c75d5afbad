#include "ops/recurrent.h"

#include <string>

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/gemm.h"
#include "ops/lengths.h"
#include "ops/reduce.h"

namespace drupe::ops {
namespace {

// The validated arguments, and the tensors that their pointers look into.
struct Problem {
  const char* op;
  RecurrentArgs args;
  Device device;
  Tensor x;
  std::vector<Tensor> kept;

  const void* keep(const Tensor& tensor) {
    kept.push_back(contiguous(tensor));
    return kept.back().raw();
  }
  Dims states() const { return {args.directions, args.B, args.H}; }
  Dims gates() const { return {args.T, args.B, gates_of(args.cell) * args.H}; }
  Dims hidden() const { return {args.T, args.B, args.H}; }
};

void check_operand(const Problem& problem, const Tensor& tensor, const std::string& name, const Dims& shape) {
  const char* op = problem.op;
  check_type(tensor.dtype() == problem.args.dtype, op, "x is ", problem.args.dtype, ", ", name, " is ", tensor.dtype());
  check(tensor.shape() == shape, op, name, " is ", tensor.shape(), ": expected ", shape);
  common_device(op, {&problem.x, &tensor});
}

Problem plan(Cell cell, const Tensor& x, const std::vector<RecurrentWeights>& weights,
             const std::optional<Tensor>& lengths, bool backward) {
  const bool lstm = cell == Cell::lstm;
  const char* op = backward ? (lstm ? "lstm_backward" : "gru_backward") : (lstm ? "lstm" : "gru");
  check_type(is_float(x.dtype()), op, "x is ", x.dtype(), ": expected float32, float64, float16 or bfloat16");
  check(x.ndim() == 3, op, "x is ", x.shape(), ": expected 3 dimensions (T, B, I)");
  check(weights.size() == 1 || weights.size() == 2, op, "there are weights of ", weights.size(),
        " directions: expected 1 or 2");
  const Tensor& first = weights[0].weight_hh;
  check(first.ndim() == 2 && first.size(0) == gates_of(cell) * first.size(1), op, "weight_hh is ", first.shape(),
        ": expected (", gates_of(cell), " H, H)");
  Problem problem{.op = op,
                  .args = {.cell = cell,
                           .T = x.size(0),
                           .B = x.size(1),
                           .H = first.size(1),
                           .directions = static_cast<int>(weights.size()),
                           .direction = {},
                           .h0 = nullptr,
                           .c0 = nullptr,
                           .y = nullptr,
                           .h = nullptr,
                           .c = nullptr,
                           .lengths = nullptr,
                           .dtype = x.dtype(),
                           .keep = true},
                  .device = x.device(),
                  .x = contiguous(x),
                  .kept = {}};
  RecurrentArgs& args = problem.args;
  const std::int64_t rows = gates_of(cell) * args.H;
  for (int d = 0; d < args.directions; ++d) {
    const RecurrentWeights& given = weights[static_cast<std::size_t>(d)];
    const std::string suffix = d == 0 ? "" : "_reverse";
    check_operand(problem, given.weight_ih, "weight_ih" + suffix, {rows, x.size(2)});
    check_operand(problem, given.weight_hh, "weight_hh" + suffix, {rows, args.H});
    if (given.bias_ih) check_operand(problem, *given.bias_ih, "bias_ih" + suffix, {rows});
    if (given.bias_hh) check_operand(problem, *given.bias_hh, "bias_hh" + suffix, {rows});
    args.direction[d].weight = problem.keep(given.weight_hh);
    args.direction[d].bias = given.bias_hh ? problem.keep(*given.bias_hh) : nullptr;
  }
  if (lengths) {
    common_device(op, {&x, &*lengths});
    problem.kept.push_back(checked_lengths(*lengths, args.B, args.T, "lengths", op));
    args.lengths = problem.kept.back().data<std::int64_t>();
  }
  return problem;
}

// A state or its gradient, zeros where left out.
const void* keep_state(Problem& problem, const std::optional<Tensor>& given, const char* name) {
  if (!given) return problem.keep(zeros(problem.states(), problem.args.dtype, problem.device));
  check_operand(problem, *given, name, problem.states());
  return problem.keep(*given);
}

// A matrix of all steps: (T B, last).
Tensor rows_of(const Tensor& tensor) {
  return *tensor.try_reshape({tensor.size(0) * tensor.size(1), tensor.size(2)});
}

Tensor product(const Tensor& a, const Tensor& b, const GemmOptions& options,
               const std::optional<Tensor>& residual = {}) {
  return gemm(a, b, {}, residual, options).first;
}

}  // namespace

RecurrentResult recurrent(Cell cell, const Tensor& x, const std::vector<RecurrentWeights>& weights,
                          const RecurrentStates& initial, const std::optional<Tensor>& lengths, bool keep) {
  Problem problem = plan(cell, x, weights, lengths, false);
  RecurrentArgs& args = problem.args;
  const Dtype dtype = args.dtype;
  args.keep = keep || problem.device.type == DeviceType::cuda;
  args.h0 = keep_state(problem, initial.h, "h0");
  RecurrentResult result;
  result.y = empty({args.T, args.B, args.directions * args.H}, dtype, problem.device);
  result.h = empty(problem.states(), dtype, problem.device);
  args.y = result.y.raw();
  args.h = result.h.raw();
  check(cell == Cell::lstm || !initial.c, problem.op, "c0 is given: it has no such state");
  if (cell == Cell::lstm) {
    args.c0 = keep_state(problem, initial.c, "c0");
    result.c = empty(problem.states(), dtype, problem.device);
    args.c = result.c.raw();
  }
  const bool apart = problem.device.type == DeviceType::cpu;
  for (int d = 0; d < args.directions; ++d) {
    const RecurrentWeights& given = weights[static_cast<std::size_t>(d)];
    const std::optional<Tensor> bias = apart ? std::nullopt : given.bias_ih;
    if (apart && given.bias_ih) args.direction[d].input_bias = problem.keep(*given.bias_ih);
    const Tensor gates = gemm(problem.x, given.weight_ih, bias, {}, {.transpose_b = true}).first;
    Tensor hidden, memory;
    if (args.keep) {
      hidden = empty(problem.hidden(), dtype, problem.device);
      memory = empty(problem.hidden(), accumulator_of(dtype), problem.device);
    }
    args.direction[d].gates = gates.raw();
    args.direction[d].hidden = hidden.raw();
    args.direction[d].memory = memory.raw();
    result.saved.insert(result.saved.end(), {gates, hidden, memory});
  }
  if (result.h.numel() > 0) {
    dispatch(
        problem.device, [&]<Isa I>() { cpu::recurrent<I>(args); }, [&](auto stream) { cuda::recurrent(args, stream); });
  }
  if (!args.keep) result.saved.clear();
  return result;
}

RecurrentGradients recurrent_backward(Cell cell, const std::optional<Tensor>& dy, const RecurrentStates& dfinal,
                                      const Tensor& x, const std::vector<RecurrentWeights>& weights,
                                      const std::optional<Tensor>& lengths, const std::vector<Tensor>& saved,
                                      const RecurrentWants& wants) {
  Problem problem = plan(cell, x, weights, lengths, true);
  RecurrentArgs& forward = problem.args;
  check(saved.size() == 3 * weights.size(), problem.op, "saved has ", saved.size(), " tensors: expected ",
        3 * weights.size());
  for (std::size_t d = 0; d < weights.size(); ++d) {
    check_operand(problem, saved[3 * d], "saved gates", problem.gates());
    check_operand(problem, saved[3 * d + 1], "saved hidden", problem.hidden());
    const Tensor& memory = saved[3 * d + 2];
    check(memory.shape() == problem.hidden() && memory.dtype() == accumulator_of(forward.dtype), problem.op,
          "saved memory is ", memory.dtype(), " ", memory.shape(), ": expected ", accumulator_of(forward.dtype), " ",
          problem.hidden());
  }
  const Dims output{forward.T, forward.B, forward.directions * forward.H};
  const Tensor dy_given = dy ? *dy : zeros(output, forward.dtype, problem.device);
  check_operand(problem, dy_given, "dy", output);
  const void* dh = keep_state(problem, dfinal.h, "dh");
  RecurrentBackwardArgs args{.forward = {},
                             .dy = problem.keep(dy_given),
                             .dh = dh,
                             .dc = cell == Cell::lstm ? keep_state(problem, dfinal.c, "dc") : nullptr,
                             .dinput = {},
                             .drecurrent = {},
                             .dh0 = nullptr,
                             .dc0 = nullptr};
  RecurrentGradients gradients;
  gradients.dh0 = empty(problem.states(), forward.dtype, problem.device);
  args.dh0 = gradients.dh0.raw();
  if (cell == Cell::lstm) {
    gradients.dc0 = empty(problem.states(), forward.dtype, problem.device);
    args.dc0 = gradients.dc0.raw();
  }
  Tensor dinput[2], drecurrent[2];
  for (int d = 0; d < forward.directions; ++d) {
    const auto at = static_cast<std::size_t>(3 * d);
    forward.direction[d].gates = saved[at].raw();
    forward.direction[d].hidden = saved[at + 1].raw();
    forward.direction[d].memory = saved[at + 2].raw();
    dinput[d] = empty(problem.gates(), forward.dtype, problem.device);
    drecurrent[d] = cell == Cell::lstm ? dinput[d] : empty(problem.gates(), forward.dtype, problem.device);
    args.dinput[d] = dinput[d].raw();
    args.drecurrent[d] = drecurrent[d].raw();
  }
  args.forward = forward;
  if (gradients.dh0.numel() > 0) {
    dispatch(
        problem.device, [&]<Isa I>() { cpu::recurrent_backward<I>(args); },
        [&](auto stream) { cuda::recurrent_backward(args, stream); });
  }
  for (int d = 0; d < forward.directions; ++d) {
    const RecurrentWeights& given = weights[static_cast<std::size_t>(d)];
    const RecurrentWants::Weights& wanted = wants.weights[d];
    const Tensor& hidden = saved[static_cast<std::size_t>(3 * d + 1)];
    const GemmOptions transposed{.transpose_a = true};
    RecurrentWeights dweights;
    if (wanted.weight_ih) dweights.weight_ih = product(rows_of(dinput[d]), rows_of(problem.x), transposed);
    if (wanted.weight_hh) dweights.weight_hh = product(rows_of(drecurrent[d]), rows_of(hidden), transposed);
    if (wanted.bias_ih && given.bias_ih) dweights.bias_ih = reduce("sum", dinput[d], {0, 1}, false);
    if (wanted.bias_hh && given.bias_hh) dweights.bias_hh = reduce("sum", drecurrent[d], {0, 1}, false);
    gradients.dweights.push_back(dweights);
    if (!wants.x) continue;
    const std::optional<Tensor> other = d == 0 ? std::nullopt : std::optional(gradients.dx);
    gradients.dx = product(dinput[d], given.weight_ih, {}, other);
  }
  return gradients;
}

}  // namespace drupe::ops
