// Squared error: one pass each way. Bytes: a and b; these and the gradients.
#include "ops/mse.h"

#include "core/dispatch.h"
#include "cpu/pointwise_loss.h"

namespace drupe::cpu {
namespace {

template <Isa I, class S>
void forward(const MseArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const S* a = static_cast<const S*>(args.a);
  const S* b = static_cast<const S*>(args.b);
  reduce_loss<I>(args.size, args.reduction, static_cast<T*>(args.loss), [&](std::int64_t i, auto lanes) {
    const V d = load<V>(a + i, lanes) - load<V>(b + i, lanes);
    return d * d;
  });
}

template <Isa I, class S>
void backward(const MseArgs& args) {
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  const S* a = static_cast<const S*>(args.a);
  const S* b = static_cast<const S*>(args.b);
  spread_loss<I>(args.size, args.reduction, static_cast<const T*>(args.dloss),
                 [&](std::int64_t i, auto lanes, V dloss) {
                   const V g = V::set(2) * dloss * (load<V>(a + i, lanes) - load<V>(b + i, lanes));
                   if (args.da) store(g, static_cast<S*>(args.da) + i, lanes);
                   if (args.db) store(-g, static_cast<S*>(args.db) + i, lanes);
                 });
}

}  // namespace

template <Isa I>
void mse(const MseArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { forward<I, S>(args); });
}

template <Isa I>
void mse_backward(const MseArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() { backward<I, S>(args); });
}

template void mse<Isa::DRUPE_ISA>(const MseArgs&);
template void mse_backward<Isa::DRUPE_ISA>(const MseArgs&);

}  // namespace drupe::cpu
