// Binary cross entropy: one pass each way, and one over the blocks' sums. Bytes: logits, targets and weights; these and
// the gradients.
#include "ops/bce_with_logits.h"

#include "core/dispatch.h"
#include "cuda/tile/pointwise_loss.cuh"

namespace drupe::cuda {
namespace {

// The operands are z, t, weight, pos_weight.
template <class A>
struct Softplus {
  A below, above;  // softplus(-z) and softplus(z)
};

template <class A>
__device__ __forceinline__ Softplus<A> softplus(A z) {
  const A rest = std::log1p(std::exp(-std::fabs(z)));
  return {(z < A(0) ? -z : A(0)) + rest, (z > A(0) ? z : A(0)) + rest};
}

// factor * value, and 0 where the factor is 0 though the value be infinite.
template <class A>
__device__ __forceinline__ A product(A factor, A value) {
  return factor == A(0) ? A(0) : factor * value;
}

template <class A>
struct Loss {
  __device__ __forceinline__ A operator()(const A (&x)[4]) const {
    const Softplus<A> s = softplus(x[0]);
    return x[2] * (product(x[1] * x[3], s.below) + product(A(1) - x[1], s.above));
  }
};

// By z and, where that is wanted, by t.
template <class A>
struct Slope {
  bool want_dtargets;
  __device__ __forceinline__ Slopes<A> operator()(const A (&x)[4]) const {
    const A z = x[0], t = x[1], weight = x[2], pos_weight = x[3];
    const A decay = std::exp(-std::fabs(z));
    const A large = fast_divide(A(1), A(1) + decay), small = decay * large;
    const A above = z < A(0) ? small : large, below = z < A(0) ? large : small;
    Slopes<A> slopes{weight * ((A(1) - t) * above - pos_weight * t * below), A(0)};
    if (want_dtargets) {
      const Softplus<A> s = softplus(z);
      slopes.second = weight * (pos_weight * s.below - s.above);
    }
    return slopes;
  }
};

template <class S>
LossOperands<S, 4> operands_of(const BceArgs& args) {
  return {{static_cast<const S*>(args.logits), static_cast<const S*>(args.targets), static_cast<const S*>(args.weight),
           static_cast<const S*>(args.pos_weight)}};
}

}  // namespace

void bce_with_logits(const BceArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<class S>() {
    using A = Accumulator<S>;
    reduce_loss(stream, Loss<A>{}, operands_of<S>(args), args.size, args.reduction, static_cast<A*>(args.loss));
  });
}

void bce_with_logits_backward(const BceArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<class S>() {
    using A = Accumulator<S>;
    spread_loss(stream, Slope<A>{args.dtargets != nullptr}, operands_of<S>(args), args.size, args.reduction,
                static_cast<const A*>(args.dloss),
                Gradients<S>{static_cast<S*>(args.dlogits), static_cast<S*>(args.dtargets)});
  });
}

}  // namespace drupe::cuda
