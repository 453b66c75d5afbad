#include "ops/sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/index_range.h"

namespace drupe::ops {
namespace {

constexpr double kLog2E = 1.4426950408889634;

void check_options(const SampleOptions& options, const char* op) {
  check(std::isfinite(options.temperature) && options.temperature >= 0, op, "temperature is ", options.temperature,
        ": expected a finite number that is not negative");
  check(options.top_k.value_or(1) >= 1, op, "top_k is ", options.top_k.value_or(1), ": expected at least 1");
  const double p = options.top_p.value_or(1), least = options.min_p.value_or(0);
  check(p > 0 && p <= 1, op, "top_p is ", p, ": expected above 0, at most 1");
  check(least >= 0 && least <= 1, op, "min_p is ", least, ": expected 0 to 1");
}

const char* reason_of(std::int64_t fault) {
  switch (static_cast<SampleFault>(fault)) {
    case SampleFault::nan:
      return "has NaN";
    case SampleFault::infinite:
      return "has infinity";
    default:
      return "is all -infinity";
  }
}

float factor_of(double temperature) {
  if (temperature == 0) return 0;
  using Limits = std::numeric_limits<float>;
  return static_cast<float>(
      std::clamp<double>(kLog2E / temperature, Limits::min(), static_cast<double>(Limits::max())));
}

}  // namespace

int sample_scale_bits(std::int64_t size) {
  return std::min(40, 63 - static_cast<int>(std::bit_width(static_cast<std::uint64_t>(size))));
}

Tensor sample(const Tensor& logits, const SampleOptions& options) {
  const char* op = "sample";
  const Dtype dtype = logits.dtype();
  check_type(dtype == Dtype::f32 || dtype == Dtype::f16 || dtype == Dtype::bf16, op, "logits are ", dtype,
             ": expected float32, float16 or bfloat16");
  check(logits.ndim() >= 1, op, "logits are ", logits.shape(), ": expected at least 1 dimension");
  check_options(options, op);
  Dims shape = logits.shape();
  shape.pop_back();
  Tensor y = empty(shape, Dtype::i64, logits.device());
  if (y.numel() == 0) return y;
  const std::int64_t size = logits.size(-1);
  check(size > 0, op, "logits are ", logits.shape(), ": no token to draw");
  const Tensor source = contiguous(logits);
  const SampleArgs args{.logits = source.raw(),
                        .indices = y.data<std::int64_t>(),
                        .rows = y.numel(),
                        .size = size,
                        .factor = factor_of(options.temperature),
                        .least = static_cast<float>(std::log2(options.min_p.value_or(0))),
                        .scale_bits = sample_scale_bits(size),
                        .k = std::min(options.top_k.value_or(size), size),
                        .p = options.top_p.value_or(1),
                        .seed = options.seed,
                        .offset = options.offset,
                        .dtype = dtype};
  dispatch(logits.device(), [&]<Isa I>() { cpu::sample<I>(args); }, [&](auto stream) { cuda::sample(args, stream); });
  if (const auto fault = first_out_of_range(y, size)) {
    fail<std::invalid_argument>(op, "row ", fault->position, " of logits ", reason_of(fault->index),
                                ": no token to draw");
  }
  return y;
}

}  // namespace drupe::ops
