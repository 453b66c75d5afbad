#include "ops/activation.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"

namespace drupe {
namespace {

constexpr Activation kAll[] = {Activation::none, Activation::relu,    Activation::gelu, Activation::gelu_tanh,
                               Activation::silu, Activation::sigmoid, Activation::tanh};

}  // namespace

const char* name_of(Activation activation) {
  constexpr const char* kNames[] = {"none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh"};
  return kNames[static_cast<int>(activation)];
}

Activation parse_activation(const std::string& name, const char* op) {
  if (name.empty()) return Activation::none;
  for (Activation activation : kAll) {
    if (name == name_of(activation)) return activation;
  }
  fail(op, "activation is \"", name, "\": expected relu, gelu, gelu_tanh, silu, sigmoid or tanh");
}

namespace ops {

Tensor activation(const Tensor& x, const std::string& name) {
  const Activation kind = parse_activation(name, "activation");
  const char* op = name_of(kind);
  check_type(is_float(x.dtype()), op, "x is ", x.dtype(), ": expected a float dtype");
  const Tensor source = is_dense(x) ? x : contiguous(x);
  Tensor y = empty_like(source);
  const ActivationArgs args{
      .x = source.raw(), .dy = nullptr, .y = y.raw(), .size = x.numel(), .dtype = x.dtype(), .activation = kind};
  dispatch(
      x.device(), [&]<Isa I>() { cpu::activation<I>(args); }, [&](auto stream) { cuda::activation(args, stream); });
  return y;
}

Tensor activation_backward(const Tensor& dy, const Tensor& saved, const std::string& name) {
  const Activation kind = parse_activation(name, "activation_backward");
  const char* op = "activation_backward";
  const Device device = common_device(op, {&dy, &saved});
  check_type(is_float(dy.dtype()) && dy.dtype() == saved.dtype(), op, "dy is ", dy.dtype(), ", saved is ",
             saved.dtype(), ": expected one float dtype");
  check(dy.shape() == saved.shape(), op, "dy is ", dy.shape(), ", saved is ", saved.shape());
  const bool same_order = is_dense(saved) && dy.strides() == saved.strides();
  const Tensor x = same_order ? saved : contiguous(saved);
  const Tensor g = same_order ? dy : contiguous(dy);
  Tensor dx = empty_like(x);
  const ActivationArgs args{
      .x = x.raw(), .dy = g.raw(), .y = dx.raw(), .size = x.numel(), .dtype = x.dtype(), .activation = kind};
  dispatch(
      device, [&]<Isa I>() { cpu::activation_backward<I>(args); },
      [&](auto stream) { cuda::activation_backward(args, stream); });
  return dx;
}

}  // namespace ops
}  // namespace drupe
