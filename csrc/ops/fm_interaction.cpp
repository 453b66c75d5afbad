#include "ops/fm_interaction.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/fill.h"

namespace drupe::ops {
namespace {

// Keeps `contiguous` alive beside the arguments that point into it.
FmInteractionArgs prepare(const char* op, const Tensor& v, Tensor& contiguous_v) {
  check_type(is_float(v.dtype()), op, "v is ", v.dtype(), ": expected float32, float64, float16 or bfloat16");
  check(v.ndim() == 3, op, "v is ", v.shape(), ": expected 3 dimensions, (batch, fields, features)");
  contiguous_v = contiguous(v);
  return {.v = contiguous_v.raw(),
          .y = nullptr,
          .dy = nullptr,
          .dv = nullptr,
          .B = v.size(0),
          .F = v.size(1),
          .E = v.size(2),
          .dtype = v.dtype()};
}

}  // namespace

Tensor fm_interaction(const Tensor& v) {
  Tensor kept;
  FmInteractionArgs args = prepare("fm_interaction", v, kept);
  if (v.numel() == 0) return full({args.B}, 0.0, v.dtype(), v.device());
  Tensor y = empty({args.B}, v.dtype(), v.device());
  args.y = y.raw();
  dispatch(
      v.device(), [&]<Isa I>() { cpu::fm_interaction<I>(args); },
      [&](auto stream) { cuda::fm_interaction(args, stream); });
  return y;
}

Tensor fm_interaction_backward(const Tensor& dy, const Tensor& v) {
  const char* op = "fm_interaction_backward";
  const Device device = common_device(op, {&dy, &v});
  Tensor kept;
  FmInteractionArgs args = prepare(op, v, kept);
  check_type(dy.dtype() == v.dtype(), op, "v is ", v.dtype(), ", dy is ", dy.dtype(), ": expected one dtype");
  check(dy.shape() == (Dims{args.B}), op, "dy is ", dy.shape(), ": expected ", Dims{args.B});
  const Tensor gradient = contiguous(dy);
  Tensor dv = empty(v.shape(), v.dtype(), device);
  if (dv.numel() == 0) return dv;
  args.dy = gradient.raw();
  args.dv = dv.raw();
  dispatch(
      device, [&]<Isa I>() { cpu::fm_interaction_backward<I>(args); },
      [&](auto stream) { cuda::fm_interaction_backward(args, stream); });
  return dv;
}

}  // namespace drupe::ops
