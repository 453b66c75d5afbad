// One pass: reads x (and dy), writes y. Bytes: 2 or 3 times the tensor.
#include "cpu/activation.h"

#include "core/dispatch.h"
#include "core/parallel.h"
#include "cpu/lanes.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrain = 16384;  // elements a task

// out[i] = value(i, lanes) for all elements, in parallel.
template <Isa I, class S, class Value>
void write_all(const ActivationArgs& args, const Value& value) {
  const bool stream = passes_caches<S>(args.size);
  parallel_ranges(args.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    write_vectors<I>(
        static_cast<S*>(args.y) + begin, end - begin,
        [&](std::int64_t i, auto lanes) { return value(begin + i, lanes); }, stream);
    if (stream) stream_fence<I>();
  });
}

}  // namespace

template <Isa I>
void activation(const ActivationArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    using V = Vec<Accumulator<S>, I>;
    const S* x = static_cast<const S*>(args.x);
    dispatch_activation(args.activation, [&]<Activation A>() {
      write_all<I, S>(args, [&](std::int64_t i, auto lanes) { return activate<A>(load<V>(x + i, lanes)); });
    });
  });
}

template <Isa I>
void activation_backward(const ActivationArgs& args) {
  dispatch_float(args.dtype, [&]<class S>() {
    using V = Vec<Accumulator<S>, I>;
    const S* saved = static_cast<const S*>(args.x);
    const S* dy = static_cast<const S*>(args.dy);
    dispatch_activation(args.activation, [&]<Activation A>() {
      write_all<I, S>(args, [&](std::int64_t i, auto lanes) {
        return load<V>(dy + i, lanes) * activation_derivative<A>(load<V>(saved + i, lanes));
      });
    });
  });
}

template void activation<Isa::DRUPE_ISA>(const ActivationArgs&);
template void activation_backward<Isa::DRUPE_ISA>(const ActivationArgs&);

}  // namespace drupe::cpu
