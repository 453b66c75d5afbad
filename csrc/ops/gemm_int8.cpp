#include "ops/gemm_int8.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"

namespace drupe::ops {
namespace {

bool is_output(Dtype dtype) {
  return dtype == Dtype::f32 || dtype == Dtype::f16 || dtype == Dtype::bf16;
}

// One scale for each row or column, contiguous.
Tensor expand_scale(const Tensor& scale, const char* name, const Dims& shape) {
  check_type(scale.dtype() == Dtype::f32, "gemm_int8", name, " is ", scale.dtype(), ": expected float32");
  check(broadcast_shapes(scale.shape(), shape, "gemm_int8") == shape, "gemm_int8", name, " is ", scale.shape(),
        ": does not broadcast to ", shape);
  return contiguous(scale.broadcast_to(shape));
}

}  // namespace

Tensor gemm_int8(const Tensor& a, const Tensor& b, const Tensor& scale_a, const Tensor& scale_b,
                 const std::optional<Tensor>& bias, bool transpose_b, const std::string& activation, Dtype dtype) {
  check_type(a.dtype() == Dtype::i8, "gemm_int8", "a is ", a.dtype(), ": expected int8");
  check_type(b.dtype() == Dtype::i8, "gemm_int8", "b is ", b.dtype(), ": expected int8");
  check_type(is_output(dtype), "gemm_int8", "dtype is ", dtype, ": expected float32, float16 or bfloat16");
  check(a.ndim() >= 2, "gemm_int8", "a is ", a.shape(), ": expected at least 2 dimensions");
  check(b.ndim() == 2, "gemm_int8", "b is ", b.shape(), ": expected 2 dimensions");
  const Device device = common_device("gemm_int8", {&a, &b, &scale_a, &scale_b, bias ? &*bias : nullptr});
  const Tensor rows = transpose_b ? b : b.transpose(0, 1);  // (N, K)
  const std::int64_t K = a.size(-1), N = rows.size(0);
  check(rows.size(1) == K, "gemm_int8", "a is ", a.shape(), ", b is ", b.shape(), transpose_b ? " transposed" : "",
        ": inner dimensions ", K, " and ", rows.size(1), " differ");
  check(K <= kGemmInt8MaxK, "gemm_int8", "K is ", K, ": int32 sums are exact up to ", kGemmInt8MaxK);

  Dims leading(std::span(a.shape().begin(), static_cast<std::size_t>(a.ndim() - 1)));
  const Tensor left = expand_scale(scale_a, "scale_a", leading), right = expand_scale(scale_b, "scale_b", Dims{N});
  Tensor row;
  if (bias) {
    check_type(is_output(bias->dtype()), "gemm_int8", "bias is ", bias->dtype(),
               ": expected float32, float16 or bfloat16");
    check(bias->shape() == Dims{N}, "gemm_int8", "bias is ", bias->shape(), ": expected (", N, ",)");
    row = contiguous(cast(*bias, Dtype::f32));
  }
  const Tensor a_rows = contiguous(a), b_rows = contiguous(rows);
  const std::int64_t M = left.numel();
  leading.push_back(N);
  Tensor y = empty(leading, dtype, device);
  const GemmInt8Args args{.M = M,
                          .N = N,
                          .K = K,
                          .a = a_rows.data<std::int8_t>(),
                          .b = b_rows.data<std::int8_t>(),
                          .scale_a = left.data<float>(),
                          .scale_b = right.data<float>(),
                          .bias = row.data<float>(),
                          .y = y.raw(),
                          .activation = parse_activation(activation, "gemm_int8"),
                          .dtype = dtype};
  if (y.numel() == 0) return y;
  dispatch(device, [&]<Isa I>() { cpu::gemm_int8<I>(args); }, [&](auto stream) { cuda::gemm_int8(args, stream); });
  return y;
}

}  // namespace drupe::ops
