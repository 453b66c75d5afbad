#include "ops/dropout.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"

namespace drupe::ops {

Tensor dropout(const Tensor& x, double p, std::uint64_t seed, std::uint64_t offset,
               const std::optional<Tensor>& state) {
  check_type(is_float(x.dtype()), "dropout", "x is ", x.dtype(), ": expected float32, float64, float16 or bfloat16");
  check(p >= 0 && p <= 1, "dropout", "p is ", p, ": expected 0 to 1");
  if (state) {
    check(state->shape() == Dims{2} && state->dtype() == Dtype::i64 && state->is_contiguous() &&
              x.device().type == DeviceType::cuda,
          "dropout", "state is ", state->dtype(), " ", state->shape(), ": expected int64 (2,), on a device");
    common_device("dropout", {&x, &*state});
  }
  const Tensor source = contiguous(x);
  Tensor y = empty(x.shape(), x.dtype(), x.device());
  const DropoutArgs args{.x = source.raw(),
                         .y = y.raw(),
                         .size = x.numel(),
                         .p = p,
                         .seed = seed,
                         .offset = offset,
                         .dtype = x.dtype(),
                         .state = state ? static_cast<const std::uint64_t*>(state->raw()) : nullptr};
  dispatch(x.device(), [&]<Isa I>() { cpu::dropout<I>(args); }, [&](auto stream) { cuda::dropout(args, stream); });
  return y;
}

}  // namespace drupe::ops
