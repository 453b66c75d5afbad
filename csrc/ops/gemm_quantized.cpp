#include "ops/gemm_quantized.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"

namespace drupe::ops {
namespace {

void check_on_cpu(const char* op, const char* name, const Tensor& x) {
  check(x.device().type == DeviceType::cpu, op, name, " is on ", x.device(), ": quantised weights are for the CPU");
}

void check_finite(const QuantizedMatrix& weight, const Dims& shape) {
  const float* scales = weight.scales.data<float>();
  const std::int64_t panel = weight.groups() * kQuantizedCols;
  for (std::int64_t i = 0; i < weight.scales.numel(); ++i) {
    check(std::isfinite(scales[i]), "quantize_weight", "b is ", shape, ", with a NaN or an infinity in ",
          weight.transpose ? "row " : "column ", i / panel * kQuantizedCols + i % kQuantizedCols);
  }
}

}  // namespace

QuantizedMatrix quantize_weight(const Tensor& b, bool transpose, int bits, std::int64_t group) {
  check_type(is_float(b.dtype()), "quantize_weight", "b is ", b.dtype(),
             ": expected float32, float64, float16 or bfloat16");
  check(b.ndim() == 2, "quantize_weight", "b is ", b.shape(), ": expected 2 dimensions");
  check(bits == 8 || bits == 4, "quantize_weight", "bits is ", bits, ": expected 8 or 4");
  check(group >= 1, "quantize_weight", "group is ", group, ": expected at least 1");
  check_on_cpu("quantize_weight", "b", b);
  const Tensor narrow = b.dtype() == Dtype::f64 ? cast(b, Dtype::f32) : b;
  const Tensor bt = transpose ? narrow.transpose(0, 1) : narrow;  // (K, N)
  QuantizedMatrix weight{.N = bt.size(1),
                         .K = bt.size(0),
                         .transpose = transpose,
                         .bits = bits,
                         .group = std::min(group, std::max<std::int64_t>(1, bt.size(0))),
                         .values = {},
                         .scales = {}};
  weight.values = empty({weight.panels(), weight.K, kQuantizedCols * bits / 8}, Dtype::u8);
  weight.scales = empty({weight.panels(), weight.groups(), kQuantizedCols}, Dtype::f32);
  const QuantizeWeightArgs args{.b = bt.raw(),
                                .b_row = bt.stride(0),
                                .b_col = bt.stride(1),
                                .K = weight.K,
                                .N = weight.N,
                                .group = weight.group,
                                .bits = bits,
                                .dtype = bt.dtype(),
                                .values = weight.values.data<std::uint8_t>(),
                                .scales = weight.scales.data<float>()};
  if (b.numel() > 0) dispatch_isa([&]<Isa I>() { cpu::quantize_weight<I>(args); });
  check_finite(weight, b.shape());
  return weight;
}

Tensor gemm_quantized(const Tensor& a, const QuantizedMatrix& weight, const std::optional<Tensor>& bias,
                      const std::optional<Tensor>& residual, const std::string& activation) {
  constexpr const char* kOp = "gemm_quantized";
  const std::int64_t N = weight.N, K = weight.K;
  check_type(a.dtype() == Dtype::f32 || a.dtype() == Dtype::f16 || a.dtype() == Dtype::bf16, kOp, "a is ", a.dtype(),
             ": expected float32, float16 or bfloat16");
  check(a.ndim() >= 2, kOp, "a is ", a.shape(), ": expected at least 2 dimensions");
  check(a.size(-1) == K, kOp, "a is ", a.shape(), ", the weight is ", weight.transpose ? Dims{N, K} : Dims{K, N},
        weight.transpose ? " transposed" : "", ": inner dimensions ", a.size(-1), " and ", K, " differ");
  check_on_cpu(kOp, "a", a);
  common_device(kOp, {&a, bias ? &*bias : nullptr, residual ? &*residual : nullptr});
  Dims shape = a.shape();
  shape[shape.size() - 1] = N;
  Tensor row, added;
  if (bias) {
    check_type(bias->dtype() == a.dtype(), kOp, "a is ", a.dtype(), ", bias is ", bias->dtype());
    check(bias->shape() == Dims{N}, kOp, "bias is ", bias->shape(), ": expected (", N, ",)");
    row = contiguous(*bias);
  }
  if (residual) {
    check_type(residual->dtype() == a.dtype(), kOp, "a is ", a.dtype(), ", residual is ", residual->dtype());
    check(broadcast_shapes(residual->shape(), shape, kOp) == shape, kOp, "residual is ", residual->shape(),
          ": does not broadcast to ", shape);
    added = contiguous(residual->broadcast_to(shape));
  }
  const Activation parsed = parse_activation(activation, kOp);
  const Tensor rows = contiguous(a), y = empty(shape, a.dtype());
  if (y.numel() == 0) return y;
  const GemmQuantizedArgs args{.product = {.M = y.numel() / N,
                                           .N = N,
                                           .K = K,
                                           .a = rows.raw(),
                                           .a_row = K,
                                           .a_col = 1,
                                           .b = nullptr,
                                           .b_row = 0,
                                           .b_col = 0,
                                           .y = y.raw(),
                                           .bias = row.raw(),
                                           .residual = added.raw(),
                                           .residual_row = N,
                                           .residual_col = 1,
                                           .batch_shape = {},
                                           .a_batch = {},
                                           .b_batch = {},
                                           .residual_batch = {},
                                           .activation = parsed,
                                           .dtype = a.dtype()},
                               .values = weight.values.data<std::uint8_t>(),
                               .scales = weight.scales.data<float>(),
                               .group = weight.group,
                               .bits = weight.bits};
  dispatch_isa([&]<Isa I>() { cpu::gemm_quantized<I>(args); });
  return y;
}

}  // namespace drupe::ops
