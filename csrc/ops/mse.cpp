#include "ops/mse.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"

namespace drupe::ops {
namespace {

struct Problem {
  Tensor a, b;
  MseArgs args;
};

Problem prepare(const char* op, const Tensor& a, const Tensor& b, const std::string& reduction) {
  check_type(is_float(a.dtype()), op, "a is ", a.dtype(), ": expected float32, float64, float16 or bfloat16");
  check_type(a.dtype() == b.dtype(), op, "a is ", a.dtype(), ", b is ", b.dtype(), ": expected one dtype");
  check(a.shape() == b.shape(), op, "a is ", a.shape(), ", b is ", b.shape(), ": expected one shape");
  common_device(op, {&a, &b});
  Problem p{.a = contiguous(a), .b = contiguous(b), .args = {}};
  p.args = {.size = a.numel(),
            .a = p.a.raw(),
            .b = p.b.raw(),
            .loss = nullptr,
            .dloss = nullptr,
            .da = nullptr,
            .db = nullptr,
            .reduction = parse_reduction(reduction, op),
            .dtype = a.dtype()};
  return p;
}

}  // namespace

Tensor mse(const Tensor& a, const Tensor& b, const std::string& reduction) {
  Problem p = prepare("mse", a, b, reduction);
  Tensor loss = empty(p.args.reduction == Reduction::none ? a.shape() : Dims{}, accumulator_of(a.dtype()), a.device());
  p.args.loss = loss.raw();
  dispatch(a.device(), [&]<Isa I>() { cpu::mse<I>(p.args); }, [&](auto stream) { cuda::mse(p.args, stream); });
  return loss;
}

std::pair<Tensor, Tensor> mse_backward(const Tensor& dloss, const Tensor& a, const Tensor& b,
                                       const std::string& reduction, bool want_da, bool want_db) {
  const char* op = "mse_backward";
  const Device device = common_device(op, {&dloss, &a});
  Problem p = prepare(op, a, b, reduction);
  const Dtype computed = accumulator_of(a.dtype());
  const Dims expected = p.args.reduction == Reduction::none ? a.shape() : Dims{};
  check_type(dloss.dtype() == computed, op, "dloss is ", dloss.dtype(), ": expected ", computed);
  check(dloss.shape() == expected, op, "dloss is ", dloss.shape(), ": expected ", expected);
  const Tensor gradient = contiguous(dloss);
  Tensor da, db;
  if (want_da) da = empty(a.shape(), a.dtype(), a.device());
  if (want_db) db = empty(a.shape(), a.dtype(), a.device());
  p.args.dloss = gradient.raw();
  p.args.da = da.raw();
  p.args.db = db.raw();
  dispatch(
      device, [&]<Isa I>() { cpu::mse_backward<I>(p.args); }, [&](auto stream) { cuda::mse_backward(p.args, stream); });
  return {da, db};
}

}  // namespace drupe::ops
