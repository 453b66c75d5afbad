// The rules of the optimizer steps. They spell out their fused multiply-adds, so that an element gets the same bits
// wherever it lies, and the same as on the CPU (cpu/optimizer_rules.h).
#pragma once

#include <cmath>
#include <platform/device.cuh>

#include "ops/optimizer.h"

namespace drupe::cuda {

// What a step may find on the device only.
template <class T>
struct Factors {
  T grad_scale, minus_lr, root_scale, keep;
};

// What they are made of. Without betas there is no correction.
struct FactorRule {
  double lr, grad_scale, beta1 = 0, beta2 = 0, decay = 0;
  std::int64_t step = 1;
};

// A rule's operator()(p, g, states) makes an element's states new and gives the new p; order says which of the
// tensor's states the rule's are, -1 for one that it has no use for

template <class T>
struct Penalty {
  T grad_scale, l1, weight_decay;

  // grad_scale g + l1 sign(p) + weight_decay p
  __device__ __forceinline__ T operator()(T p, T g) const {
    g = l1 != T(0) ? std::fma(g, grad_scale, p == T(0) ? T(0) : std::copysign(l1, p)) : g * grad_scale;
    if (weight_decay != T(0)) g = std::fma(weight_decay, p, g);
    return g;
  }
};

// What sgd and rmsprop share: the learning rate is a factor as it is.
template <class T>
struct RateRule {
  Penalty<T> penalty;
  T minus_lr;

  template <class Args>
  explicit RateRule(const Args& args)
      : penalty{static_cast<T>(args.grad_scale), static_cast<T>(args.l1), static_cast<T>(args.weight_decay)},
        minus_lr(static_cast<T>(-args.lr)) {}

  template <class Args>
  static FactorRule factor_rule(const Args& args) {
    return {.lr = args.lr, .grad_scale = args.grad_scale};
  }
  __device__ __forceinline__ void take(const Factors<T>& factors) {
    penalty.grad_scale = factors.grad_scale;
    minus_lr = factors.minus_lr;
  }
};

template <class T>
struct SgdRule : RateRule<T> {
  using RateRule<T>::penalty;
  using RateRule<T>::minus_lr;
  static constexpr int kStates = 1;
  int order[kStates] = {0};
  T momentum;
  bool nesterov;

  explicit SgdRule(const SgdArgs& args)
      : RateRule<T>(args), momentum(static_cast<T>(args.momentum)), nesterov(args.nesterov) {}

  __device__ __forceinline__ T operator()(T p, T g, T* state) const {
    g = penalty(p, g);
    if (momentum != T(0)) {
      state[0] = std::fma(momentum, state[0], g);
      g = nesterov ? std::fma(momentum, state[0], g) : state[0];
    }
    return std::fma(minus_lr, g, p);
  }
};

template <class T>
struct AdamRule {
  static constexpr int kStates = 2;
  int order[kStates] = {0, 1};
  Penalty<T> penalty;
  T keep, beta1, one_minus_beta1, beta2, one_minus_beta2, minus_step_size, root_scale, eps;

  explicit AdamRule(const AdamArgs& args)
      : penalty{static_cast<T>(args.grad_scale), static_cast<T>(args.l1),
                static_cast<T>(args.decoupled ? 0 : args.weight_decay)},
        keep(static_cast<T>(args.decoupled ? 1 - args.lr * args.weight_decay : 1)),
        beta1(static_cast<T>(args.beta1)),
        one_minus_beta1(static_cast<T>(1 - args.beta1)),
        beta2(static_cast<T>(args.beta2)),
        one_minus_beta2(static_cast<T>(1 - args.beta2)),
        eps(static_cast<T>(args.eps)) {
    const auto step = static_cast<double>(args.step);
    minus_step_size = static_cast<T>(-args.lr / (1 - std::pow(args.beta1, step)));
    root_scale = static_cast<T>(1 / std::sqrt(1 - std::pow(args.beta2, step)));
  }

  static FactorRule factor_rule(const AdamArgs& args) {
    return {.lr = args.lr,
            .grad_scale = args.grad_scale,
            .beta1 = args.beta1,
            .beta2 = args.beta2,
            .decay = args.decoupled ? args.weight_decay : 0,
            .step = args.step};
  }
  __device__ __forceinline__ void take(const Factors<T>& factors) {
    penalty.grad_scale = factors.grad_scale;
    minus_step_size = factors.minus_lr;
    root_scale = factors.root_scale;
    keep = factors.keep;
  }

  __device__ __forceinline__ T operator()(T p, T g, T* state) const {
    g = penalty(p, g);
    state[0] = std::fma(beta1, state[0], one_minus_beta1 * g);
    state[1] = std::fma(beta2, state[1], one_minus_beta2 * g * g);
    return std::fma(minus_step_size, state[0] / std::fma(std::sqrt(state[1]), root_scale, eps), p * keep);
  }
};

// States: the mean of squares, the mean where centered, the buffer where there is momentum.
template <class T>
struct RmspropRule : RateRule<T> {
  using RateRule<T>::penalty;
  using RateRule<T>::minus_lr;
  static constexpr int kStates = 3;
  int order[kStates];
  T alpha, one_minus_alpha, momentum, eps;
  bool centered;

  explicit RmspropRule(const RmspropArgs& args)
      : RateRule<T>(args),
        order{0, args.centered ? 1 : -1,
              args.momentum == 0 ? -1
              : args.centered    ? 2
                                 : 1},
        alpha(static_cast<T>(args.alpha)),
        one_minus_alpha(static_cast<T>(1 - args.alpha)),
        momentum(static_cast<T>(args.momentum)),
        eps(static_cast<T>(args.eps)),
        centered(args.centered) {}

  __device__ __forceinline__ T operator()(T p, T g, T* state) const {
    g = penalty(p, g);
    state[0] = std::fma(alpha, state[0], one_minus_alpha * g * g);
    T square = state[0];
    if (centered) {
      state[1] = std::fma(alpha, state[1], one_minus_alpha * g);
      square = std::fma(-state[1], state[1], square);
      square = square < T(0) ? T(0) : square;  // rounding may leave less than nothing; NaN stays
    }
    T update = g / (std::sqrt(square) + eps);
    if (momentum != T(0)) {
      update = state[2] = std::fma(momentum, state[2], update);
    }
    return std::fma(minus_lr, update, p);
  }
};

}  // namespace drupe::cuda
