// A step of an optimizer on one row of a table, given the row's gradient in accumulators.
#pragma once

#include "cpu/optimizer_update.h"
#include "cpu/row_sum.h"
#include "ops/embedding_step.h"

namespace drupe::cpu {

template <class T, Isa I>
struct RowwiseAdagradRule {
  using V = Vec<T, I>;
  static constexpr int kStates = 0;
  V minus_rate;

  // g has its decay already.
  DRUPE_INLINE V operator()(V p, V g, V*) const { return fused(minus_rate, g, p); }
};

template <Isa I, class S>
class RowStep {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  static constexpr auto kItem = static_cast<std::int64_t>(sizeof(S));

 public:
  RowStep(const RowStepArgs& args, std::int64_t width)
      : args_(args),
        width_(width),
        sgd_(args.sgd()),
        adam_(args.options),
        plan_(PrefetchPlan::make<I>(args.weight, args.row_stride * kItem, width * kItem,
                                    kPrefetchBytes / (args.rule == RowRule::adam ? 3 : 1))) {}

  DRUPE_INLINE void prefetch(std::int64_t row) const {
    plan_(static_cast<const S*>(args_.weight) + row * args_.row_stride);
    if (args_.rule == RowRule::rowwise_adagrad) __builtin_prefetch(state(0) + row);
    if (args_.rule != RowRule::adam) return;
    for (int k = 0; k < 2; ++k) plan_(state(k) + row * width_);
  }
  std::int64_t ahead() const { return plan_.ahead; }

  // g, which it may write to, is the row's gradient.
  [[gnu::noinline]] void operator()(std::int64_t row, T* g) const {
    S* weight = static_cast<S*>(args_.weight) + row * args_.row_stride;
    Stretch<S, T> at{.param = weight, .master = nullptr, .grad = g, .state = {}, .size = width_};
    switch (args_.rule) {
      case RowRule::sgd:
        return run(sgd_, at, row);
      case RowRule::adam:
        for (int k = 0; k < 2; ++k) at.state[k] = state(k) + row * width_;
        return run(adam_, at, row);
      case RowRule::rowwise_adagrad:
        return run(RowwiseAdagradRule<T, I>{V::set(-rate(row, weight, g))}, at, row);
    }
  }

 private:
  T* state(int k) const { return static_cast<T*>(args_.state[k]); }

  // Completes the gradient, adds its mean square to the row's state, and gives the rate that follows.
  T rate(std::int64_t row, const S* weight, T* g) const {
    T sums[1];
    sum_vectors<I, T>(width_, sums, [&](std::int64_t i, auto lanes, V* sum) {
      const V here = sgd_.penalty(load<V>(weight + i, lanes), load<V>(g + i, lanes));
      store(here, g + i, lanes);
      sum[0] = fused(here, here, sum[0]);
    });
    T& sum = state(0)[row];
    sum += sums[0] / static_cast<T>(width_);
    return static_cast<T>(args_.options.lr) / (std::sqrt(sum) + static_cast<T>(args_.options.eps));
  }

  template <class Rule>
  DRUPE_INLINE void run(const Rule& rule, const Stretch<S, T>& at, std::int64_t row) const {
    if constexpr (!std::is_same_v<S, T>) {
      if (args_.rounding.stochastic) return update_drawn<I>(rule, at, row * width_, 0, args_.rounding);
    }
    update<I>(rule, at, at.param, 0, width_,
              [&](std::int64_t i, auto p, auto lanes) { store(p, at.param + i, lanes); });
  }

  RowStepArgs args_;
  std::int64_t width_;
  SgdRule<T, I, false> sgd_;
  AdamRule<T, I> adam_;
  PrefetchPlan plan_;
};

}  // namespace drupe::cpu
