// Pointwise activations. Bytes: x (and dy) read once, y written once.
#include "cuda/tile/activation.cuh"

#include "core/dispatch.h"
#include "cuda/tile/map.cuh"

namespace drupe::cuda {
namespace {

template <Activation kA, class T>
struct Forward {
  __device__ __forceinline__ T operator()(T x) const { return narrow<T>(activate<kA>(widen(x))); }
};

template <Activation kA, class T>
struct Backward {
  __device__ __forceinline__ T operator()(T saved, T dy) const {
    return narrow<T>(widen(dy) * activation_derivative<kA>(widen(saved)));
  }
};

}  // namespace

void activation(const ActivationArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<class T>() {
    dispatch_activation(args.activation, [&]<Activation kA>() {
      map(stream, Forward<kA, T>{}, args.size, static_cast<T*>(args.y), static_cast<const T*>(args.x));
    });
  });
}

void activation_backward(const ActivationArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<class T>() {
    dispatch_activation(args.activation, [&]<Activation kA>() {
      map(stream, Backward<kA, T>{}, args.size, static_cast<T*>(args.y), static_cast<const T*>(args.x),
          static_cast<const T*>(args.dy));
    });
  });
}

}  // namespace drupe::cuda
