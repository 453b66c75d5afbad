// The rules of the optimizer steps, in registers. They spell out their multiply-adds and round each once, on the scalar
// instruction set too, so that an element gets the same bits on every one of them and on a device
// (cuda/optimizer_rules.cuh).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cpu/simd.h"
#include "ops/optimizer.h"

namespace drupe::cpu {

// a * b + c, rounded once.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> fused(Vec<T, I> a, Vec<T, I> b, Vec<T, I> c) {
#if !defined(__FP_FAST_FMAF)
  if constexpr (Vec<T, I>::kLanes == 1 && std::is_same_v<T, float>) {
    // A product of floats is exact in double. What the sum loses goes into its last bit, where rounding to float
    // sees it (Boldo, Melquiond 2008, "Emulation of a FMA and correctly rounded sums").
    const double product = static_cast<double>(a.v) * static_cast<double>(b.v), addend = static_cast<double>(c.v);
    double sum = product + addend;
    const double other = sum - product;
    const double lost = (product - (sum - other)) + (addend - other);
    auto bits = std::bit_cast<std::int64_t>(sum);
    if ((lost > 0 || lost < 0) && bits % 2 == 0) {
      bits += (lost > 0) == (sum > 0) ? 1 : -1;
      sum = std::bit_cast<double>(bits);
    }
    return {static_cast<float>(sum)};
  }
#endif
  // Of two products in a sum the compiler may round the wrong one.
  if constexpr (Vec<T, I>::kLanes == 1) return {std::fma(a.v, b.v, c.v)};
  return fma(a, b, c);
}

// A rule makes p and its states new in registers: operator()(p, g, states) is advance(g, states), with the penalty in
// g, and then move(p, g, states). Where the states may be narrow (kNarrow), is_signed says which of them are no means
// of squares. This is what all of them do to g first.
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
    g = has_l1 ? fused(g, grad_scale, select(p == V::zero(), V::zero(), copysign(l1, p))) : g * grad_scale;
    if (has_decay) g = fused(weight_decay, p, g);
    return g;
  }
};

template <class T, Isa I, bool Momentum>
struct SgdRule {
  using V = Vec<T, I>;
  static constexpr int kStates = Momentum ? 1 : 0;
  static constexpr bool kNarrow = Momentum;
  static constexpr bool is_signed(int) { return true; }
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
    advance(g, state);
    return move(p, g, state);
  }
  DRUPE_INLINE void advance(V g, V* state) const {
    if constexpr (Momentum) state[0] = fused(momentum, state[0], g);
  }
  DRUPE_INLINE V move(V p, V g, const V* state) const {
    if constexpr (Momentum) g = nesterov ? fused(momentum, state[0], g) : state[0];
    return fused(minus_lr, g, p);
  }
};

template <class T, Isa I>
struct AdamRule {
  using V = Vec<T, I>;
  static constexpr int kStates = 2;
  static constexpr bool kNarrow = true;
  static constexpr bool is_signed(int state) { return state == 0; }
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
    advance(g, state);
    return move(p, g, state);
  }
  DRUPE_INLINE void advance(V g, V* state) const {
    state[0] = fused(beta1, state[0], one_minus_beta1 * g);
    state[1] = fused(beta2, state[1], one_minus_beta2 * g * g);
  }
  DRUPE_INLINE V move(V p, V, const V* state) const {
    return fused(minus_step_size, state[0] / fused(sqrt(state[1]), root_scale, eps), p * keep);
  }
};

// States: the mean of squares, then the mean where centered, then the buffer where there is momentum.
template <class T, Isa I, bool Centered, bool Momentum>
struct RmspropRule {
  using V = Vec<T, I>;
  static constexpr int kStates = 1 + Centered + Momentum;
  static constexpr bool kNarrow = !Centered;
  static constexpr bool is_signed(int state) { return state > 0; }
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
    advance(g, state);
    return move(p, g, state);
  }
  DRUPE_INLINE void advance(V g, V* state) const {
    state[0] = fused(alpha, state[0], one_minus_alpha * g * g);
    if constexpr (Centered) state[1] = fused(alpha, state[1], one_minus_alpha * g);
    if constexpr (Momentum) state[kStates - 1] = fused(momentum, state[kStates - 1], quotient(g, state));
  }
  DRUPE_INLINE V move(V p, V g, const V* state) const {
    return fused(minus_lr, Momentum ? state[kStates - 1] : quotient(g, state), p);
  }

 private:
  DRUPE_INLINE V quotient(V g, const V* state) const {
    V square = state[0];
    // Rounding may leave less than nothing; NaN stays.
    if constexpr (Centered) square = max(V::zero(), fused(-state[1], state[1], square));
    return g / (sqrt(square) + eps);
  }
};

}  // namespace drupe::cpu
