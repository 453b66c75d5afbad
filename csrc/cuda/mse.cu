// Squared error: one pass each way, and one over the blocks' sums. Bytes: a and b; these and the gradients.
#include "ops/mse.h"

#include "core/dispatch.h"
#include "cuda/tile/pointwise_loss.cuh"

namespace drupe::cuda {
namespace {

template <class A>
struct Loss {
  __device__ __forceinline__ A operator()(const A (&x)[2]) const { return (x[0] - x[1]) * (x[0] - x[1]); }
};

template <class A>
struct Slope {
  __device__ __forceinline__ Slopes<A> operator()(const A (&x)[2]) const {
    const A slope = A(2) * (x[0] - x[1]);
    return {slope, -slope};
  }
};

template <class S>
LossOperands<S, 2> operands_of(const MseArgs& args) {
  return {{static_cast<const S*>(args.a), static_cast<const S*>(args.b)}};
}

}  // namespace

void mse(const MseArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<class S>() {
    using A = Accumulator<S>;
    reduce_loss(stream, Loss<A>{}, operands_of<S>(args), args.size, args.reduction, static_cast<A*>(args.loss));
  });
}

void mse_backward(const MseArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<class S>() {
    using A = Accumulator<S>;
    spread_loss(stream, Slope<A>{}, operands_of<S>(args), args.size, args.reduction, static_cast<const A*>(args.dloss),
                Gradients<S>{static_cast<S*>(args.da), static_cast<S*>(args.db)});
  });
}

}  // namespace drupe::cuda
