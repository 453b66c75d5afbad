// Multi-tensor optimizer steps. The tensors lie side by side in one range that is cut into chunks of fixed size; each
// chunk is one task, whatever tensors it crosses. An element is read and written once by one rule, in registers: adam
// moves 7 accumulators an element, sgd 3 (5 with momentum), rmsprop 5 to 9. Elements do not see each other, so the
// cut leaves no trace in the bits.
#include "ops/optimizer.h"

#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "cpu/simd.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kChunk = 32768;  // elements a task

// A rule makes p and its states new in registers: operator()(p, g, states). This is what all of them do to g first.
template <class T, Isa I>
struct Penalty {
  using V = Vec<T, I>;
  V grad_scale, l1, weight_decay;
  bool has_l1, has_decay;

  Penalty(double scale, double absolute, double square)
      : grad_scale(V::set(static_cast<T>(scale))),
        l1(V::set(static_cast<T>(absolute))),
        weight_decay(V::set(static_cast<T>(square))),
        has_l1(absolute != 0),
        has_decay(square != 0) {}

  // grad_scale g + l1 sign(p) + weight_decay p
  DRUPE_INLINE V operator()(V p, V g) const {
    g = g * grad_scale;
    if (has_l1) g = g + select(p == V::zero(), V::zero(), copysign(l1, p));
    if (has_decay) g = fma(weight_decay, p, g);
    return g;
  }
};

template <class T, Isa I, bool Momentum>
struct SgdRule {
  using V = Vec<T, I>;
  static constexpr int kStates = Momentum ? 1 : 0;
  Penalty<T, I> penalty;
  V minus_lr, momentum;
  bool nesterov;

  explicit SgdRule(const SgdArgs& args)
      : penalty(args.grad_scale, args.l1, args.weight_decay),
        minus_lr(V::set(static_cast<T>(-args.lr))),
        momentum(V::set(static_cast<T>(args.momentum))),
        nesterov(args.nesterov) {}

  DRUPE_INLINE V operator()(V p, V g, V* state) const {
    g = penalty(p, g);
    if constexpr (Momentum) {
      state[0] = fma(momentum, state[0], g);
      g = nesterov ? fma(momentum, state[0], g) : state[0];
    }
    return fma(minus_lr, g, p);
  }
};

template <class T, Isa I>
struct AdamRule {
  using V = Vec<T, I>;
  static constexpr int kStates = 2;
  Penalty<T, I> penalty;
  V keep, beta1, one_minus_beta1, beta2, one_minus_beta2, minus_step_size, root_scale, eps;

  explicit AdamRule(const AdamArgs& args)
      : penalty(args.grad_scale, args.l1, args.decoupled ? 0 : args.weight_decay),
        keep(V::set(static_cast<T>(args.decoupled ? 1 - args.lr * args.weight_decay : 1))),
        beta1(V::set(static_cast<T>(args.beta1))),
        one_minus_beta1(V::set(static_cast<T>(1 - args.beta1))),
        beta2(V::set(static_cast<T>(args.beta2))),
        one_minus_beta2(V::set(static_cast<T>(1 - args.beta2))),
        eps(V::set(static_cast<T>(args.eps))) {
    const auto step = static_cast<double>(args.step);
    minus_step_size = V::set(static_cast<T>(-args.lr / (1 - std::pow(args.beta1, step))));
    root_scale = V::set(static_cast<T>(1 / std::sqrt(1 - std::pow(args.beta2, step))));
  }

  DRUPE_INLINE V operator()(V p, V g, V* state) const {
    g = penalty(p, g);
    p = p * keep;
    state[0] = fma(beta1, state[0], one_minus_beta1 * g);
    state[1] = fma(beta2, state[1], one_minus_beta2 * g * g);
    return fma(minus_step_size, state[0] / fma(sqrt(state[1]), root_scale, eps), p);
  }
};

// States: the mean of squares, then the mean where centered, then the buffer where there is momentum.
template <class T, Isa I, bool Centered, bool Momentum>
struct RmspropRule {
  using V = Vec<T, I>;
  static constexpr int kStates = 1 + Centered + Momentum;
  Penalty<T, I> penalty;
  V alpha, one_minus_alpha, minus_lr, momentum, eps;

  explicit RmspropRule(const RmspropArgs& args)
      : penalty(args.grad_scale, args.l1, args.weight_decay),
        alpha(V::set(static_cast<T>(args.alpha))),
        one_minus_alpha(V::set(static_cast<T>(1 - args.alpha))),
        minus_lr(V::set(static_cast<T>(-args.lr))),
        momentum(V::set(static_cast<T>(args.momentum))),
        eps(V::set(static_cast<T>(args.eps))) {}

  DRUPE_INLINE V operator()(V p, V g, V* state) const {
    g = penalty(p, g);
    state[0] = fma(alpha, state[0], one_minus_alpha * g * g);
    V square = state[0];
    if constexpr (Centered) {
      state[1] = fma(alpha, state[1], one_minus_alpha * g);
      square = max(V::zero(), square - state[1] * state[1]);  // rounding may leave less than nothing; NaN stays
    }
    V update = g / (sqrt(square) + eps);
    if constexpr (Momentum) {
      V& buffer = state[kStates - 1];
      buffer = fma(momentum, buffer, update);
      update = buffer;
    }
    return fma(minus_lr, update, p);
  }
};

template <Isa I, class S, class Rule>
void update(const Rule& rule, S* param, const S* grad, Accumulator<S>* const* states, std::int64_t size) {
  using V = Vec<Accumulator<S>, I>;
  V state[kMaxStates];
  std::int64_t i = 0;
  for (; i + V::kLanes <= size; i += V::kLanes) {
    for (int k = 0; k < Rule::kStates; ++k) state[k] = V::load(states[k] + i);
    rule(V::load(param + i), V::load(grad + i), state).store(param + i);
    for (int k = 0; k < Rule::kStates; ++k) state[k].store(states[k] + i);
  }
  if (const int rest = static_cast<int>(size - i); rest > 0) {
    for (int k = 0; k < Rule::kStates; ++k) state[k] = V::load(states[k] + i, rest);
    rule(V::load(param + i, rest), V::load(grad + i, rest), state).store(param + i, rest);
    for (int k = 0; k < Rule::kStates; ++k) state[k].store(states[k] + i, rest);
  }
}

// Elements [begin, end) of one tensor's gradient.
template <Isa I, class S, class Rule>
void update_range(const Rule& rule, const StepTensor& tensor, std::int64_t begin, std::int64_t end) {
  using T = Accumulator<S>;
  // From element `at` of the gradient, whose place in the parameter is `place`.
  const auto run = [&](std::int64_t at, std::int64_t place, std::int64_t size) {
    T* states[kMaxStates] = {};
    for (int k = 0; k < Rule::kStates; ++k) states[k] = static_cast<T*>(tensor.state[k]) + place;
    update<I>(rule, static_cast<S*>(tensor.param) + place, static_cast<const S*>(tensor.grad) + at, states, size);
  };
  if (!tensor.rows) {
    run(begin, begin, end - begin);
    return;
  }
  while (begin < end) {
    const std::int64_t row = begin / tensor.width, column = begin % tensor.width;
    const std::int64_t size = std::min(end - begin, tensor.width - column);
    run(begin, tensor.rows[row] * tensor.width + column, size);
    begin += size;
  }
}

// MakeRule::operator()<T>() gives the rule for an accumulator type.
template <Isa I, class MakeRule>
void sweep(const StepList& list, const MakeRule& make_rule) {
  parallel_ranges(list.starts[list.count], kChunk, [&](std::int64_t begin, std::int64_t end) {
    std::int64_t low = 0, high = list.count;  // the last tensor that starts at or before `begin`
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (list.starts[middle] <= begin ? low : high) = middle;
    }
    for (std::int64_t i = low; i < list.count && list.starts[i] < end; ++i) {
      const StepTensor& tensor = list.tensors[i];
      const std::int64_t from = std::max<std::int64_t>(begin - list.starts[i], 0);
      const std::int64_t to = std::min(end - list.starts[i], tensor.size);
      if (from >= to) continue;
      dispatch_float(tensor.dtype, [&]<class S>() {
        update_range<I, S>(make_rule.template operator()<Accumulator<S>>(), tensor, from, to);
      });
    }
  });
}

}  // namespace

template <Isa I>
void sgd(const SgdArgs& args) {
  if (args.momentum != 0) {
    sweep<I>(args.list, [&]<class T>() { return SgdRule<T, I, true>(args); });
  } else {
    sweep<I>(args.list, [&]<class T>() { return SgdRule<T, I, false>(args); });
  }
}

template <Isa I>
void adam(const AdamArgs& args) {
  sweep<I>(args.list, [&]<class T>() { return AdamRule<T, I>(args); });
}

template <Isa I>
void rmsprop(const RmspropArgs& args) {
  const bool momentum = args.momentum != 0;
  if (args.centered && momentum) {
    sweep<I>(args.list, [&]<class T>() { return RmspropRule<T, I, true, true>(args); });
  } else if (args.centered) {
    sweep<I>(args.list, [&]<class T>() { return RmspropRule<T, I, true, false>(args); });
  } else if (momentum) {
    sweep<I>(args.list, [&]<class T>() { return RmspropRule<T, I, false, true>(args); });
  } else {
    sweep<I>(args.list, [&]<class T>() { return RmspropRule<T, I, false, false>(args); });
  }
}

template <Isa I>
void sum_of_squares(const SumOfSquaresArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    using T = Accumulator<S>;
    using V = Vec<T, I>;
    const auto* x = static_cast<const S*>(args.x);
    parallel_ranges(args.size, kSquaresChunk, [&](std::int64_t begin, std::int64_t end) {
      double& partial = args.partials[begin / kSquaresChunk];
      if (args.wide) {
        partial = 0;
        for (std::int64_t i = begin; i < end; ++i) {
          const auto value = static_cast<double>(static_cast<T>(x[i]));
          partial += value * value;
        }
        return;
      }
      constexpr int kChains = 4;  // independent sums, to hide the latency of fma
      V sums[kChains] = {V::zero(), V::zero(), V::zero(), V::zero()};
      std::int64_t i = begin;
      for (; i + kChains * V::kLanes <= end; i += kChains * V::kLanes) {
        for (int k = 0; k < kChains; ++k) {
          const V value = V::load(x + i + k * V::kLanes);
          sums[k] = fma(value, value, sums[k]);
        }
      }
      for (; i < end; i += V::kLanes) {
        const V value = V::load(x + i, static_cast<int>(std::min<std::int64_t>(V::kLanes, end - i)));
        sums[0] = fma(value, value, sums[0]);
      }
      partial = static_cast<double>(reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3])));
    });
  });
}

template void sgd<Isa::DRUPE_ISA>(const SgdArgs&);
template void adam<Isa::DRUPE_ISA>(const AdamArgs&);
template void rmsprop<Isa::DRUPE_ISA>(const RmspropArgs&);
template void sum_of_squares<Isa::DRUPE_ISA>(const SumOfSquaresArgs&);

}  // namespace drupe::cpu
