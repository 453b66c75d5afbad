#include "ops/optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/check.h"
#include "core/cuda.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/sparse_rows.h"

namespace drupe::ops {
namespace {

// Tensors start at multiples of this in the sweep, so that the cuts between chunks fall on aligned elements, and
// between the blocks of narrow states.
constexpr std::int64_t kPlace = kStateBlock;

std::string element(const char* list, std::size_t i) {
  return std::string(list) + "[" + std::to_string(i) + "]";
}

struct Range {
  const std::byte* begin;
  const std::byte* end;
  std::string name;
};

// The memory from a tensor's first to its last element.
Range range_of(const Tensor& tensor, std::string name) {
  std::int64_t low = 0, high = 0;
  for (int i = 0; i < tensor.ndim(); ++i) {
    const std::int64_t reach = (tensor.size(i) - 1) * tensor.stride(i);
    (reach < 0 ? low : high) += reach;
  }
  const auto size = static_cast<std::int64_t>(size_of(tensor.dtype()));
  const auto* data = static_cast<const std::byte*>(tensor.raw());
  return {data + low * size, data + (high + 1) * size, std::move(name)};
}

// One list of tensors that a step writes: the parameters, or one of their states.
struct Written {
  const char* name;
  const Tensors* tensors;
};

enum class StateKind { any, wide };  // whether states may be narrow

// Checks the lists, brings what is not dense into dense copies, runs, and brings the results back.
class Plan {
 public:
  Plan(const char* op, const StepInputs& inputs, std::initializer_list<Written> states, StateKind kind = StateKind::any)
      : op_(op),
        inputs_(inputs),
        states_(states),
        kind_(kind),
        device_(inputs.params.empty() ? Device{} : inputs.params[0].device()) {
    states_.insert(states_.begin(), {"params", &inputs.params});
    check_counts();
    for (std::size_t i = 0; i < inputs.params.size(); ++i) check_pair(i);
    if (inputs.rounding.stochastic && device_.type != DeviceType::cpu && cuda::is_capturing(device_)) {
      fail<std::runtime_error>(op,
                               "stochastic rounding in a captured graph would draw the same numbers at each replay");
    }
    check_overlap();
    for (std::size_t i = 0; i < inputs.params.size(); ++i) add(i);
  }

  StepList list() const {
    return {steps_.data(), starts_.data(), static_cast<std::int64_t>(steps_.size()), inputs_.rounding};
  }

  Device device() const { return device_; }

  void finish() const {
    for (const auto& [original, copy] : copies_) copy_into(original, copy);
  }

 private:
  const std::optional<Tensor>& master(std::size_t i) const {
    static const std::optional<Tensor> kNone;
    return inputs_.masters.empty() ? kNone : inputs_.masters[i];
  }

  const std::optional<Tensor>& scale(std::size_t i) const {
    static const std::optional<Tensor> kNone;
    return inputs_.scales.empty() ? kNone : inputs_.scales[i];
  }

  Dtype state_dtype(std::size_t i) const {
    return states_.size() > 1 ? (*states_[1].tensors)[i].dtype() : accumulator_of(inputs_.params[i].dtype());
  }

  void check_counts() const {
    const auto expect = [&](const char* name, std::size_t count) {
      check(count == inputs_.params.size(), op_, inputs_.params.size(), " params and ", count, " ", name);
    };
    expect("grads", inputs_.grads.size());
    expect("rows", inputs_.rows.size());
    if (!inputs_.masters.empty()) expect("masters", inputs_.masters.size());
    if (!inputs_.scales.empty()) expect("scales", inputs_.scales.size());
    for (const Written& state : states_) expect(state.name, state.tensors->size());
    check(states_.size() <= kMaxStates + 1, op_, "too many states");
  }

  void check_pair(std::size_t i) const {
    const Tensor &param = inputs_.params[i], &grad = inputs_.grads[i];
    const std::optional<Tensor>& rows = inputs_.rows[i];
    check_type(is_float(param.dtype()), op_, element("params", i), " is ", param.dtype(), ": expected a float dtype");
    check_type(grad.dtype() == param.dtype(), op_, element("params", i), " is ", param.dtype(), ", ",
               element("grads", i), " is ", grad.dtype(), ": expected one dtype");
    check(param.device() == device_, op_, element("params", i), " lies on ", param.device(), ", params[0] on ", device_,
          ": move them to one device");
    common_device(op_, {&param, &grad, rows ? &*rows : nullptr});
    if (rows) {
      check(param.ndim() == 2, op_, element("params", i), " is ", param.shape(),
            ": a gradient of rows needs 2 dimensions");
      check(grad.shape() == (Dims{rows->numel(), param.size(1)}), op_, element("params", i), " is ", param.shape(),
            ", the ", rows->numel(), " rows of ", element("grads", i), " are ", grad.shape());
    } else {
      check(grad.shape() == param.shape(), op_, element("params", i), " is ", param.shape(), ", ", element("grads", i),
            " is ", grad.shape());
    }
    check_states(i);
    if (!master(i)) return;
    check_type(accumulator_of(param.dtype()) != param.dtype(), op_, element("masters", i), " is given for a ",
               param.dtype(), " parameter: only float16 and bfloat16 have masters");
    check(!inputs_.rounding.stochastic, op_, element("masters", i),
          " and stochastic rounding exclude each other: what a master keeps need not be drawn");
    check_written(i, element("masters", i), *master(i), Dtype::f32);
  }

  void check_states(std::size_t i) const {
    const Tensor& param = inputs_.params[i];
    check_writable(param, op_, element("params", i).c_str());
    const Dtype wide = accumulator_of(param.dtype());
    const bool narrow = wide == Dtype::f32 && is_narrow_state(state_dtype(i));
    if (narrow) {
      const std::string first = element(states_[1].name, i);
      check_type(param.device().type == DeviceType::cpu, op_, first, " is ", state_dtype(i),
                 ": on a GPU states must be float32");
      check_type(kind_ == StateKind::any, op_, first, " is ", state_dtype(i),
                 ": with centered=true states must be float32");
      check(!inputs_.rows[i], op_, first, " is ", state_dtype(i), ", ", element("grads", i),
            " has rows: a sparse gradient needs float32 states");
    }
    for (std::size_t k = 1; k < states_.size(); ++k) {
      check_written(i, element(states_[k].name, i), (*states_[k].tensors)[i], narrow ? state_dtype(i) : wide);
    }
    const bool coded = narrow && state_dtype(i) == Dtype::u8;
    check(coded == scale(i).has_value(), op_, states_.size() > 1 ? element(states_[1].name, i) : "there", " is ",
          states_.size() > 1 ? name_of(state_dtype(i)) : "no state", coded ? ", but there is no " : ", but there is ",
          element("scales", i));
    if (!coded) return;
    const Tensor& scales = *scale(i);
    const std::string name = element("scales", i);
    const Dims expected{static_cast<std::int64_t>(states_.size()) - 1, state_blocks(param.numel())};
    check_type(scales.dtype() == Dtype::f32, op_, name, " is ", scales.dtype(), ": expected float32");
    check(scales.shape() == expected, op_, element("params", i), " is ", param.shape(), ", ", name, " is ",
          scales.shape(), ": expected ", expected);
    check_writable(scales, op_, name.c_str());
    common_device(op_, {&param, &scales});
  }

  void check_written(std::size_t i, const std::string& name, const Tensor& tensor, Dtype dtype) const {
    const Tensor& param = inputs_.params[i];
    check_type(tensor.dtype() == dtype, op_, name, " is ", tensor.dtype(), ": expected ", dtype, " for a ",
               param.dtype(), " parameter");
    check(tensor.shape() == param.shape(), op_, element("params", i), " is ", param.shape(), ", ", name, " is ",
          tensor.shape());
    check_writable(tensor, op_, name.c_str());
    common_device(op_, {&param, &tensor});
  }

  void check_overlap() {
    const auto add = [&](const Tensor& tensor, const char* name, std::size_t i) {
      if (tensor.numel() > 0) written_.push_back(range_of(tensor, element(name, i)));
    };
    for (std::size_t i = 0; i < inputs_.params.size(); ++i) {
      for (const Written& list : states_) add((*list.tensors)[i], list.name, i);
      if (master(i)) add(*master(i), "masters", i);
      if (scale(i)) add(*scale(i), "scales", i);
    }
    std::stable_sort(written_.begin(), written_.end(),
                     [](const Range& a, const Range& b) { return a.begin < b.begin; });
    for (std::size_t i = 1; i < written_.size(); ++i) {
      check(written_[i - 1].end <= written_[i].begin, op_, written_[i - 1].name, " and ", written_[i].name,
            " overlap: each would be written twice");
    }
  }

  bool is_written(const Tensor& tensor) const {
    if (tensor.numel() == 0) return false;
    const Range range = range_of(tensor, {});
    const auto next = std::lower_bound(written_.begin(), written_.end(), range.end,
                                       [](const Range& a, const std::byte* end) { return a.begin < end; });
    return next != written_.begin() && std::prev(next)->end > range.begin;
  }

  // Whether elements may be taken as they lie: any one order will do if all the tensors have it, but what is drawn goes
  // by the order of the indices.
  bool lies_alike(std::size_t i) const {
    const Tensor& param = inputs_.params[i];
    const bool drawn = (inputs_.rounding.stochastic && accumulator_of(param.dtype()) != param.dtype()) ||
                       is_narrow_state(state_dtype(i));
    bool alike = !inputs_.rows[i] && (drawn ? param.is_contiguous() : is_dense(param));
    alike = alike && inputs_.grads[i].strides() == param.strides();
    for (const Written& written : states_) alike = alike && (*written.tensors)[i].strides() == param.strides();
    return alike && (!master(i) || master(i)->strides() == param.strides());
  }

  void add(std::size_t i) {
    const Tensor &param = inputs_.params[i], &grad = inputs_.grads[i];
    StepTensor step{.param = nullptr,
                    .master = nullptr,
                    .grad = nullptr,
                    .state = {},
                    .scales = nullptr,
                    .rows = nullptr,
                    .width = 1,
                    .size = grad.numel(),
                    .number = static_cast<std::int64_t>(i),
                    .dtype = param.dtype(),
                    .state_dtype = state_dtype(i)};
    bool alike = lies_alike(i);
    const Tensor source = is_written(grad) ? clone(grad) : alike ? grad : contiguous(grad);
    alike = alike && source.strides() == param.strides();
    const auto dense = [&](const Tensor& original) {
      if (alike || original.is_contiguous()) return original.raw();
      copies_.emplace_back(original, clone(original));
      return copies_.back().second.raw();
    };
    for (std::size_t k = 0; k < states_.size(); ++k) {
      (k == 0 ? step.param : step.state[k - 1]) = dense((*states_[k].tensors)[i]);
    }
    if (master(i)) step.master = static_cast<float*>(dense(*master(i)));
    if (scale(i)) {
      alike = false;
      step.scales = static_cast<float*>(dense(*scale(i)));
    }
    kept_.push_back(source);
    step.grad = source.raw();
    if (const auto& rows = inputs_.rows[i]) {
      kept_.push_back(check_sorted_rows(op_, element("rows", i).c_str(), *rows, param.size(0)));
      step.rows = kept_.back().data<std::int64_t>();
      step.width = param.size(1);
    }
    steps_.push_back(step);
    starts_.push_back(starts_.back() + (step.size + kPlace - 1) / kPlace * kPlace);
  }

  const char* op_;
  const StepInputs& inputs_;
  std::vector<Written> states_;  // the parameters first
  StateKind kind_;
  Device device_;
  std::vector<Range> written_;  // by address
  std::vector<StepTensor> steps_;
  std::vector<std::int64_t> starts_{0};
  std::vector<std::pair<Tensor, Tensor>> copies_;  // where a result goes, and where the kernel leaves it
  Tensors kept_;
};

// Tensors of float dtypes on one device, brought into dense memory.
class SquaresPlan {
 public:
  SquaresPlan(const char* op, const Tensors& tensors) : device_(tensors.empty() ? Device{} : tensors[0].device()) {
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      check_type(is_float(tensors[i].dtype()), op, element("tensors", i), " is ", tensors[i].dtype(),
                 ": expected a float dtype");
      common_device(op, {&tensors[0], &tensors[i]});
      dense_.push_back(is_dense(tensors[i]) ? tensors[i] : contiguous(tensors[i]));
      list_.push_back({dense_.back().raw(), dense_.back().numel(), dense_.back().dtype()});
    }
  }

  SquaresList list() const { return {.tensors = list_.data(), .count = static_cast<std::int64_t>(list_.size())}; }
  Device device() const { return device_; }

 private:
  Device device_;
  Tensors dense_;
  std::vector<SquaresTensor> list_;
};

// Checks what a step reads from the device, and keeps where it lies.
class ScalarsPlan {
 public:
  ScalarsPlan(const char* op, const DeviceScalars& given, Device device, std::size_t params) {
    const auto pointer = [&](const Tensor& tensor, const std::string& name, Dtype dtype) {
      check(device.type != DeviceType::cpu, op, name, " is a tensor, the parameters lie on the CPU: expected a number");
      check_type(tensor.dtype() == dtype, op, name, " is ", tensor.dtype(), ": expected ", dtype);
      check(tensor.ndim() == 0, op, name, " is ", tensor.shape(), ": expected no dimensions");
      check(tensor.device() == device, op, name, " lies on ", tensor.device(), ", the parameters on ", device);
      return tensor.raw();
    };
    if (given.lr) scalars_.lr = static_cast<const double*>(pointer(*given.lr, "lr", Dtype::f64));
    if (given.grad_scale) {
      scalars_.grad_scale = static_cast<const double*>(pointer(*given.grad_scale, "grad_scale", Dtype::f64));
    }
    if (given.steps.empty()) return;
    check(given.steps.size() == params, op, params, " params and ", given.steps.size(), " steps");
    for (std::size_t i = 0; i < params; ++i) {
      check_writable(given.steps[i], op, element("steps", i).c_str());
      steps_.push_back(static_cast<std::int64_t*>(pointer(given.steps[i], element("steps", i), Dtype::i64)));
    }
    std::vector<std::int64_t*> sorted = steps_;
    std::sort(sorted.begin(), sorted.end());
    check(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(), op,
          "two of the steps are one tensor: it would be counted twice");
    scalars_.steps = steps_.data();
  }

  const StepScalars& get() const { return scalars_; }

 private:
  StepScalars scalars_;
  std::vector<std::int64_t*> steps_;
};

template <Isa I>
double sum_of_squares(const SquaresTensor& tensor) {
  std::vector<double> partials(static_cast<std::size_t>((tensor.size + kSquaresChunk - 1) / kSquaresChunk));
  SumOfSquaresArgs args{
      .x = tensor.x, .size = tensor.size, .dtype = tensor.dtype, .wide = false, .partials = partials.data()};
  const auto run = [&] {
    cpu::sum_of_squares<I>(args);
    double sum = 0;
    for (double partial : partials) sum += partial;
    return sum;
  };
  const double sum = run();
  // Squares leave float's range long before their sum leaves double's.
  constexpr double kTrusted = 1e-25;
  if (std::isfinite(sum) && sum >= kTrusted) return sum;
  args.wide = true;
  return run();
}

}  // namespace

void check_hyperparameter(const char* op, const char* name, double value, double low, double below) {
  if (std::isfinite(value) && value >= low && value < below) return;
  if (std::isinf(below)) fail(op, name, " is ", value, ": expected a finite number of at least ", low);
  fail(op, name, " is ", value, ": expected a number in [", low, ", ", below, ")");
}

void sgd(const StepInputs& inputs, const Tensors& buffers, SgdArgs options) {
  const char* op = "sgd";
  check_hyperparameter(op, "lr", options.lr);
  check_hyperparameter(op, "momentum", options.momentum);
  check_hyperparameter(op, "weight_decay", options.weight_decay);
  check_hyperparameter(op, "l1", options.l1);
  check_hyperparameter(op, "grad_scale", options.grad_scale);
  check(!options.nesterov || options.momentum > 0, op, "nesterov needs a momentum above 0");
  const Written states[] = {{"buffers", &buffers}};
  const Plan plan = options.momentum != 0 ? Plan(op, inputs, {states[0]}) : Plan(op, inputs, {});
  const ScalarsPlan on_device(op, inputs.scalars, plan.device(), inputs.params.size());
  options.list = plan.list();
  options.scalars = on_device.get();
  dispatch(plan.device(), [&]<Isa I>() { cpu::sgd<I>(options); }, [&](auto stream) { cuda::sgd(options, stream); });
  plan.finish();
}

void adam(const StepInputs& inputs, const Tensors& exp_avgs, const Tensors& exp_avg_sqs, AdamArgs options) {
  const char* op = options.decoupled ? "adamw" : "adam";
  check_hyperparameter(op, "lr", options.lr);
  check_hyperparameter(op, "beta1", options.beta1, 0, 1);
  check_hyperparameter(op, "beta2", options.beta2, 0, 1);
  check_hyperparameter(op, "eps", options.eps);
  check_hyperparameter(op, "weight_decay", options.weight_decay);
  check_hyperparameter(op, "l1", options.l1);
  check_hyperparameter(op, "grad_scale", options.grad_scale);
  check(options.step >= 1, op, "step is ", options.step, ": expected at least 1");
  const Plan plan(op, inputs, {{"exp_avgs", &exp_avgs}, {"exp_avg_sqs", &exp_avg_sqs}});
  const ScalarsPlan on_device(op, inputs.scalars, plan.device(), inputs.params.size());
  options.list = plan.list();
  options.scalars = on_device.get();
  dispatch(plan.device(), [&]<Isa I>() { cpu::adam<I>(options); }, [&](auto stream) { cuda::adam(options, stream); });
  plan.finish();
}

void rmsprop(const StepInputs& inputs, const Tensors& square_avgs, const Tensors& grad_avgs, const Tensors& buffers,
             RmspropArgs options) {
  const char* op = "rmsprop";
  check_hyperparameter(op, "lr", options.lr);
  check_hyperparameter(op, "alpha", options.alpha, 0, 1);
  check_hyperparameter(op, "eps", options.eps);
  check_hyperparameter(op, "momentum", options.momentum);
  check_hyperparameter(op, "weight_decay", options.weight_decay);
  check_hyperparameter(op, "l1", options.l1);
  check_hyperparameter(op, "grad_scale", options.grad_scale);
  const Written square{"square_avgs", &square_avgs}, mean{"grad_avgs", &grad_avgs}, buffer{"buffers", &buffers};
  const bool momentum = options.momentum != 0;
  const Plan plan = options.centered ? momentum ? Plan(op, inputs, {square, mean, buffer}, StateKind::wide)
                                                : Plan(op, inputs, {square, mean}, StateKind::wide)
                    : momentum       ? Plan(op, inputs, {square, buffer})
                                     : Plan(op, inputs, {square});
  const ScalarsPlan on_device(op, inputs.scalars, plan.device(), inputs.params.size());
  options.list = plan.list();
  options.scalars = on_device.get();
  dispatch(
      plan.device(), [&]<Isa I>() { cpu::rmsprop<I>(options); }, [&](auto stream) { cuda::rmsprop(options, stream); });
  plan.finish();
}

double sum_of_squares(const Tensors& tensors) {
  const SquaresPlan plan("sum_of_squares", tensors);
  SquaresList squares = plan.list();
  dispatch(
      plan.device(),
      [&]<Isa I>() {
        for (std::int64_t i = 0; i < squares.count; ++i) squares.sum += sum_of_squares<I>(squares.tensors[i]);
      },
      [&](auto stream) { cuda::sum_of_squares(squares, stream); });
  return squares.sum;
}

Tensor clip_factor(const Tensors& tensors, double max_norm) {
  const char* op = "clip_factor";
  check(std::isfinite(max_norm) && max_norm > 0, op, "max_norm is ", max_norm, ": expected a finite number above 0");
  const SquaresPlan plan(op, tensors);
  const Tensor result = empty({2}, Dtype::f64, plan.device());
  SquaresList squares = plan.list();
  squares.clip = result.data<double>();
  squares.max_norm = max_norm;
  dispatch(
      plan.device(),
      [&]<Isa I>() {
        for (std::int64_t i = 0; i < squares.count; ++i) squares.sum += sum_of_squares<I>(squares.tensors[i]);
        const double norm = std::sqrt(squares.sum);
        squares.clip[0] = norm;
        squares.clip[1] = std::isfinite(norm) && norm > max_norm ? max_norm / norm : 1;
      },
      [&](auto stream) { cuda::sum_of_squares(squares, stream); });
  return result;
}

}  // namespace drupe::ops
