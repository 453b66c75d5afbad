#include "ops/dropout.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"

namespace drupe::ops {
namespace {

void check_operands(const char* op, const char* name, const Tensor& x, double p) {
  check_type(is_float(x.dtype()), op, name, " is ", x.dtype(), ": expected float32, float64, float16 or bfloat16");
  check(p >= 0 && p <= 1, op, "p is ", p, ": expected 0 to 1");
}

}  // namespace

std::pair<Tensor, std::optional<Tensor>> dropout(const Tensor& x, double p, std::uint64_t seed, std::uint64_t offset,
                                                 const std::optional<Tensor>& state, bool keep) {
  check_operands("dropout", "x", x, p);
  if (state) {
    check(state->shape() == Dims{2} && state->dtype() == Dtype::i64 && state->is_contiguous() &&
              x.device().type == DeviceType::cuda,
          "dropout", "state is ", state->dtype(), " ", state->shape(), ": expected int64 (2,), on a device");
    common_device("dropout", {&x, &*state});
  }
  const Tensor source = contiguous(x);
  Tensor y = empty(x.shape(), x.dtype(), x.device());
  std::optional<Tensor> mask;
  if (keep && x.device().type == DeviceType::cpu) mask = empty({dropout_mask_bytes(x.numel())}, Dtype::u8);
  const DropoutArgs args{.x = source.raw(),
                         .y = y.raw(),
                         .size = x.numel(),
                         .p = p,
                         .seed = seed,
                         .offset = offset,
                         .dtype = x.dtype(),
                         .state = state ? static_cast<const std::uint64_t*>(state->raw()) : nullptr,
                         .mask = mask ? mask->data<std::uint8_t>() : nullptr};
  dispatch(x.device(), [&]<Isa I>() { cpu::dropout<I>(args); }, [&](auto stream) { cuda::dropout(args, stream); });
  return {y, mask};
}

Tensor dropout_backward(const Tensor& dy, const std::optional<Tensor>& mask, double p, std::uint64_t seed,
                        std::uint64_t offset, const std::optional<Tensor>& state) {
  if (!mask) return dropout(dy, p, seed, offset, state, false).first;
  check_operands("dropout_backward", "dy", dy, p);
  const Dims bytes{dropout_mask_bytes(dy.numel())};
  check(mask->dtype() == Dtype::u8 && mask->shape() == bytes && mask->is_contiguous() &&
            dy.device().type == DeviceType::cpu,
        "dropout_backward", "mask is ", mask->dtype(), " ", mask->shape(), ": expected uint8 ", bytes, ", on the CPU");
  common_device("dropout_backward", {&dy, &*mask});
  const Tensor source = contiguous(dy);
  Tensor dx = empty(dy.shape(), dy.dtype());
  const DropoutArgs args{.x = source.raw(),
                         .y = dx.raw(),
                         .size = dy.numel(),
                         .p = p,
                         .seed = seed,
                         .offset = offset,
                         .dtype = dy.dtype(),
                         .mask = mask->data<std::uint8_t>()};
  dispatch_isa([&]<Isa I>() { cpu::dropout_backward<I>(args); });
  return dx;
}

}  // namespace drupe::ops
