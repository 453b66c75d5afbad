#include "ops/unary.h"

#include <algorithm>
#include <iterator>

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"

namespace drupe::ops {
namespace {

constexpr const char* kNames[] = {"neg", "abs",   "square", "sign",  "logical_not", "exp",     "expm1",
                                  "log", "log1p", "sqrt",   "rsqrt", "reciprocal",  "sin",     "cos",
                                  "erf", "floor", "ceil",   "round", "isnan",       "isfinite"};
constexpr Unary kWithBackward[] = {Unary::abs,   Unary::square,     Unary::expm1, Unary::log1p, Unary::sqrt,
                                   Unary::rsqrt, Unary::reciprocal, Unary::sin,   Unary::cos,   Unary::erf};

Unary parse(const std::string& name) {
  const auto* found = std::find(std::begin(kNames), std::end(kNames), name);
  check(found != std::end(kNames), "unary", "\"", name, "\" is no function");
  return static_cast<Unary>(found - std::begin(kNames));
}

void check_bounds(double low, double high) {
  check(low <= high, "clamp", "the bounds are ", low, " and ", high, ": expected low <= high, and no NaN");
}

Tensor forward(const Tensor& x, UnaryArgs args, Dtype y_dtype) {
  const Tensor source = is_dense(x) ? x : contiguous(x);
  Tensor y = empty_like(source, y_dtype);
  args.x = source.raw();
  args.y = y.raw();
  args.size = x.numel();
  args.dtype = x.dtype();
  dispatch(x.device(), [&]<Isa I>() { cpu::unary<I>(args); }, [&](auto stream) { cuda::unary(args, stream); });
  return y;
}

Tensor backward(const Tensor& dy, const Tensor& saved, UnaryArgs args) {
  const char* op = "unary_backward";
  const Device device = common_device(op, {&dy, &saved});
  check_type(is_float(dy.dtype()) && dy.dtype() == saved.dtype(), op, "dy is ", dy.dtype(), ", saved is ",
             saved.dtype(), ": expected one float dtype");
  check(dy.shape() == saved.shape(), op, "dy is ", dy.shape(), ", saved is ", saved.shape());
  const bool same_order = is_dense(saved) && dy.strides() == saved.strides();
  const Tensor x = same_order ? saved : contiguous(saved);
  const Tensor gradient = same_order ? dy : contiguous(dy);
  Tensor dx = empty_like(x);
  args.x = x.raw();
  args.dy = gradient.raw();
  args.y = dx.raw();
  args.size = x.numel();
  args.dtype = x.dtype();
  dispatch(
      device, [&]<Isa I>() { cpu::unary_backward<I>(args); }, [&](auto stream) { cuda::unary_backward(args, stream); });
  return dx;
}

}  // namespace

Tensor unary(const std::string& name, const Tensor& x) {
  const Unary op = parse(name);
  const char* label = name.c_str();
  if (op > Unary::logical_not) {
    check_type(is_float(x.dtype()), label, "x is ", x.dtype(), ": expected a float dtype");
  } else if (op != Unary::logical_not) {
    check_type(x.dtype() != Dtype::boolean, label, "x is bool: expected numbers");
  }
  const bool gives_bool = op == Unary::logical_not || op == Unary::isnan || op == Unary::isfinite;
  return forward(x, {.op = op}, gives_bool ? Dtype::boolean : x.dtype());
}

Tensor clamp(const Tensor& x, double low, double high) {
  check_type(is_float(x.dtype()), "clamp", "x is ", x.dtype(), ": expected a float dtype");
  check_bounds(low, high);
  return forward(x, {.op = Unary::clamp, .low = low, .high = high}, x.dtype());
}

Tensor unary_backward(const std::string& name, const Tensor& dy, const Tensor& saved) {
  const Unary op = parse(name);
  check(std::find(std::begin(kWithBackward), std::end(kWithBackward), op) != std::end(kWithBackward), "unary_backward",
        "\"", name, "\" has no kernel");
  return backward(dy, saved, {.op = op});
}

Tensor clamp_backward(const Tensor& dy, const Tensor& x, double low, double high) {
  check_bounds(low, high);
  return backward(dy, x, {.op = Unary::clamp, .low = low, .high = high});
}

}  // namespace drupe::ops
