// One pass: reads x (and dy), writes y. Bytes: 2 or 3 times the tensor.
#include "cpu/activation.h"

#include <algorithm>

#include "core/dispatch.h"
#include "core/parallel.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kGrain = 16384;  // elements a task

template <class T, Isa I, Activation A>
void forward(const T* x, T* y, std::int64_t begin, std::int64_t end) {
  using V = Vec<Accumulator<T>, I>;
  std::int64_t i = begin;
  for (; i + V::kLanes <= end; i += V::kLanes) activate<A>(V::load(x + i)).store(y + i);
  if (const int rest = static_cast<int>(end - i); rest > 0) activate<A>(V::load(x + i, rest)).store(y + i, rest);
}

template <class T, Isa I, Activation A>
void backward(const T* saved, const T* dy, T* dx, std::int64_t begin, std::int64_t end) {
  using V = Vec<Accumulator<T>, I>;
  for (std::int64_t i = begin; i < end; i += V::kLanes) {
    const int n = static_cast<int>(std::min<std::int64_t>(V::kLanes, end - i));
    const V slope = activation_derivative<A>(V::load(saved + i, n));
    (V::load(dy + i, n) * slope).store(dx + i, n);
  }
}

}  // namespace

template <Isa I>
void activation(const ActivationArgs& args) {
  dispatch_float(args.dtype, [&]<class T>() {
    dispatch_activation(args.activation, [&]<Activation A>() {
      parallel_ranges(args.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
        forward<T, I, A>(static_cast<const T*>(args.x), static_cast<T*>(args.y), begin, end);
      });
    });
  });
}

template <Isa I>
void activation_backward(const ActivationArgs& args) {
  dispatch_float(args.dtype, [&]<class T>() {
    dispatch_activation(args.activation, [&]<Activation A>() {
      parallel_ranges(args.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
        backward<T, I, A>(static_cast<const T*>(args.x), static_cast<const T*>(args.dy), static_cast<T*>(args.y), begin,
                          end);
      });
    });
  });
}

template void activation<Isa::DRUPE_ISA>(const ActivationArgs&);
template void activation_backward<Isa::DRUPE_ISA>(const ActivationArgs&);

}  // namespace drupe::cpu
