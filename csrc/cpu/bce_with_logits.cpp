// Binary cross entropy: one pass each way. Bytes: logits and targets; these and the gradients.
#include "ops/bce_with_logits.h"

#include "core/dispatch.h"
#include "cpu/pointwise_loss.h"
#include "cpu/simd_math.h"

namespace drupe::cpu {
namespace {

// The operands at one vector of elements.
template <class V>
struct Terms {
  V z, t, weight, pos_weight;
};

template <Isa I, class S, class Lanes>
DRUPE_INLINE Terms<Vec<Accumulator<S>, I>> load_terms(const BceArgs& args, std::int64_t i, Lanes lanes) {
  using V = Vec<Accumulator<S>, I>;
  const auto optional = [&](const void* factor) {
    return factor ? load<V>(static_cast<const S*>(factor) + i, lanes) : V::set(1);
  };
  return {.z = load<V>(static_cast<const S*>(args.logits) + i, lanes),
          .t = load<V>(static_cast<const S*>(args.targets) + i, lanes),
          .weight = optional(args.weight),
          .pos_weight = optional(args.pos_weight)};
}

// factor * value, and 0 where the factor is 0 though the value be infinite.
template <class T, Isa I>
DRUPE_INLINE Vec<T, I> product(Vec<T, I> factor, Vec<T, I> value) {
  using V = Vec<T, I>;
  return select(factor == V::zero(), V::zero(), factor * value);
}

template <Isa I, class S>
void forward(const BceArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  reduce_loss<I>(args.size, args.reduction, static_cast<T*>(args.loss), [&](std::int64_t i, auto lanes) {
    const auto [z, t, weight, pos_weight] = load_terms<I, S>(args, i, lanes);
    const V rest = log1p(exp(-abs(z)));
    const V below = max(V::zero(), -z) + rest, above = max(V::zero(), z) + rest;
    return weight * (product(t * pos_weight, below) + product(V::set(1) - t, above));
  });
}

template <Isa I, class S>
void backward(const BceArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  spread_loss<I>(
      args.size, args.reduction, static_cast<const T*>(args.dloss), [&](std::int64_t i, auto lanes, V dloss) {
        const auto [z, t, weight, pos_weight] = load_terms<I, S>(args, i, lanes);
        const V decay = exp(-abs(z));
        const V large = V::set(1) / (V::set(1) + decay), small = decay * large;
        const auto negative = z < V::zero();
        const V above = select(negative, small, large), below = select(negative, large, small);
        const V g = dloss * weight;
        store(g * ((V::set(1) - t) * above - pos_weight * t * below), static_cast<S*>(args.dlogits) + i, lanes);
        if (args.dtargets) {
          const V rest = log1p(decay);
          const V slope = pos_weight * (max(V::zero(), -z) + rest) - (max(V::zero(), z) + rest);
          store(g * slope, static_cast<S*>(args.dtargets) + i, lanes);
        }
      });
}

}  // namespace

template <Isa I>
void bce_with_logits(const BceArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { forward<I, S>(args); });
}

template <Isa I>
void bce_with_logits_backward(const BceArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { backward<I, S>(args); });
}

template void bce_with_logits<Isa::DRUPE_ISA>(const BceArgs&);
template void bce_with_logits_backward<Isa::DRUPE_ISA>(const BceArgs&);

}  // namespace drupe::cpu
