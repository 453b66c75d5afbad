// Pointwise activations y = f(x), by themselves and as gemm's and conv2d's epilogue.
//
//   relu       max(x, 0)
//   gelu       x Phi(x) = x (1 + erf(x / sqrt 2)) / 2                        (Hendrycks & Gimpel 2016)
//   gelu_tanh  x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2             (ibid., its approximation)
//   silu       x sigmoid(x)
//   sigmoid    1 / (1 + e^-x)
//   tanh
#pragma once

#include <cstdint>
#include <string>

#include "core/stream.h"
#include "core/tensor.h"
#include "cpu/isa.h"

namespace drupe {

enum class Activation : std::uint8_t { none, relu, gelu, gelu_tanh, silu, sigmoid, tanh };

// Throws std::invalid_argument for an unknown name; "" is none.
Activation parse_activation(const std::string& name, const char* op);
const char* name_of(Activation activation);

// Whether f'(x) is computed from x; from y = f(x) otherwise.
constexpr bool needs_input(Activation activation) {
  return activation == Activation::gelu || activation == Activation::gelu_tanh || activation == Activation::silu;
}

// Calls f.operator()<Activation>().
template <class F>
[[gnu::always_inline]] inline void dispatch_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::none:
      return f.template operator()<Activation::none>();
    case Activation::relu:
      return f.template operator()<Activation::relu>();
    case Activation::gelu:
      return f.template operator()<Activation::gelu>();
    case Activation::gelu_tanh:
      return f.template operator()<Activation::gelu_tanh>();
    case Activation::silu:
      return f.template operator()<Activation::silu>();
    case Activation::sigmoid:
      return f.template operator()<Activation::sigmoid>();
    case Activation::tanh:
      return f.template operator()<Activation::tanh>();
  }
}

struct ActivationArgs {
  const void* x;      // backward: x if needs_input, y otherwise
  const void* dy;     // backward only
  void* y;            // dx in backward; may alias x or dy
  std::int64_t size;  // elements
  Dtype dtype;
  Activation activation;
};

namespace ops {

// Any shape, float dtypes. Keeps the memory order of a dense x.
Tensor activation(const Tensor& x, const std::string& name);
// dx = dy f'(x); `saved` is x if needs_input, y otherwise.
Tensor activation_backward(const Tensor& dy, const Tensor& saved, const std::string& name);

}  // namespace ops

namespace cpu {
template <Isa>
void activation(const ActivationArgs& args);
template <Isa>
void activation_backward(const ActivationArgs& args);
}  // namespace cpu

namespace cuda {
void activation(const ActivationArgs& args, Stream stream);
void activation_backward(const ActivationArgs& args, Stream stream);
}  // namespace cuda

}  // namespace drupe
